"""One target under atheris, in a process of its own: ``python -m tests.fuzz.engine TARGET SECONDS CORPUS``.

Atheris looks which inputs reach code that none reached before, keeps those in the corpus, and goes on from
them. A crash does not end the search: the first input of each kind is kept in the directory ``crashes``
beside the corpus, and the run fails in the end.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import atheris


def main() -> None:
    """Run as a program."""
    name, seconds, place = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with atheris.instrument_imports(include=["orlop", "h11", "wsproto"]):
        from tests.fuzz import kit

        target = kit.load()[name]
    corpus, crashes = place / "corpus" / name, place / "crashes" / name
    for directory in (corpus, crashes):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def once(data: bytes) -> None:
        try:
            target.once(data)
        except Exception as error:
            _keep(crashes, error, data)

    options = [f"-max_total_time={seconds}", "-max_len=65536", "-timeout=60", "-rss_limit_mb=2048"]
    options += [f"-artifact_prefix={crashes}/", "-print_final_stats=1", "-verbosity=0", "-detect_leaks=0"]
    atheris.Setup([sys.argv[0], *options, os.fspath(corpus)], once)
    atheris.Fuzz()


def _keep(crashes: Path, error: Exception, data: bytes) -> None:
    where = traceback.extract_tb(error.__traceback__)[-1]
    stem = f"{type(error).__name__}-{Path(where.filename).stem}-{where.lineno}"
    if (crashes / stem).exists():
        return
    (crashes / stem).write_bytes(data)
    (crashes / f"{stem}.txt").write_text("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    main()
