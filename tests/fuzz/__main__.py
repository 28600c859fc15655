"""Look for inputs that break a target: ``make fuzz TARGET=spdy SECONDS=3600``.

The corpus is kept from run to run, outside the tree: in ``ORLOP_FUZZ_CORPUS``, or below the user's cache.
Each target gets the same part of the time. What broke one is below ``crashes`` there, with the traceback;
``--repeat`` feeds those inputs again. A small input that broke something belongs into
``tests/fuzz/seeds/TARGET`` when it is mended.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from pathlib import Path

from tests.fuzz import growth, kit

PLACE = Path(os.environ.get("ORLOP_FUZZ_CORPUS", Path.home() / ".cache/orlop/fuzz"))


def main() -> int:
    """Run as a program; 1 when anything broke."""
    targets = kit.load()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--target", choices=sorted(targets), action="append")
    parser.add_argument("--seconds", type=int, default=300, help="for all targets together")
    parser.add_argument("--repeat", action="store_true", help="feed again what broke a target before")
    parser.add_argument(
        "--grow", action="store_true", help="look for inputs that take time out of proportion"
    )
    options = parser.parse_args()
    names = options.target or sorted(targets)
    if options.repeat:
        return _repeat(names)
    if options.grow:
        return _grow(names)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print(
            "make fuzz needs atheris: .venv/bin/pip install -e '.[fuzz]' (Python 3.11 to 3.13)",
            file=sys.stderr,
        )
        return 2
    share = max(1, options.seconds // len(names))
    for name in names:
        subprocess.run([sys.executable, "-m", "tests.fuzz.engine", name, str(share), PLACE], check=False)
    return _tell(names)


def _crashes(name: str) -> list[Path]:
    return sorted(path for path in (PLACE / "crashes" / name).glob("*") if path.suffix != ".txt")


def _tell(names: list[str]) -> int:
    broken = [path for name in names for path in _crashes(name)]
    for path in broken:
        print(f"BROKEN: {path}")
    return 1 if broken else 0


def _repeat(names: list[str]) -> int:
    """Feed what broke the targets again, and forget what breaks them no more."""
    for name in names:
        for path in _crashes(name):
            try:
                kit.TARGETS[name].once(path.read_bytes())
            except Exception:
                print(f"=== {path}")
                traceback.print_exc(limit=-6)
            else:
                path.unlink()
                path.with_name(path.name + ".txt").unlink(missing_ok=True)
    return _tell(names)


def _grow(names: list[str]) -> int:
    """Grow inputs of the targets."""
    found = 0
    for name in names:
        for data, before, later in growth.slow(kit.TARGETS[name], seed=1):
            found += 1
            part = data[len(data) // 2 :][:60]
            print(
                f"SLOW: {name}: {before:.2f} s, {growth.LARGER} times as long {later:.2f} s: ...{part!r}..."
            )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
