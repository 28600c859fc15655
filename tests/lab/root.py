"""Root directories of other Debians on this machine: bare, to build in, or with Orlop set up by ``setup.sh``.

debootstrap fills them from the mirrors that this machine's apt is configured with. They are kept in the cache
(``$ORLOP_CACHE``, or ``~/.cache/orlop``): made in minutes, entered in a moment. They need
root, but neither loop devices nor kernel modules.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from orlop.cli.demo import registry
from tests.conformance import images, tools
from tests.conformance.tools import ToolError, cache_dir, run

RELEASES = {"12": "bookworm", "13": "trixie"}
"""The name of each Debian by its number."""
CHECKOUT = Path(__file__).resolve().parents[2]
INSIDE = "orlop"
"""Where the checkout is in the root."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENTER = Path(__file__).with_name("enter.sh")
# What apt has to know to reach the mirrors from here; not this machine's hooks.
_APT_OPTIONS = re.compile(r"Acquire::(http|https|ftp|Retries|Check-Date|Check-Valid-Until)\b")
_KEPT = {".venv"}


_STARTED = time.monotonic()


def say(message: str) -> None:
    """Tell a person what takes its time."""
    print(f"==> [{time.monotonic() - _STARTED:4.0f} s] {message}", flush=True)


@contextlib.contextmanager
def debian13() -> Iterator[Path]:
    """A root of Debian 13 with this checkout set up in it; nobody else has it meanwhile. Raises ToolError."""
    with alone("debian13") as place:
        root = place / "root"
        _pristine(root, "13")
        _know_names(root)
        place_checkout(root / INSIDE)
        say("setting Orlop up in Debian 13")
        enter(root, ["./setup.sh", "--no-demo"])
        yield root


@contextlib.contextmanager
def bare(number: str) -> Iterator[Path]:
    """A root of that Debian with nothing but its smallest system, gone after the block. Raises ToolError."""
    with alone(f"bare{number}") as place:
        root = place / "root"
        _pristine(place / "pristine", number)
        run(["rm", "-rf", "--one-file-system", root])
        run(["cp", "-a", "--reflink=auto", place / "pristine", root])
        _know_names(root)
        try:
            yield root
        finally:
            run(["rm", "-rf", "--one-file-system", root])


@contextlib.contextmanager
def builder(number: str, packages: Sequence[str]) -> Iterator[Path]:
    """A root of that Debian with this checkout and packages to build something in it. Raises ToolError."""
    with alone(f"builder{number}") as place:
        root, stamp = place / "root", place / "packages"
        if _pristine(root, number):
            stamp.unlink(missing_ok=True)
        _know_names(root)
        wanted = " ".join(packages)
        if not stamp.exists() or stamp.read_text() != wanted:
            say(f"installing what builds packages in Debian {number} (minutes, once)")
            enter(root, ["apt-get", "update", "-qq"], inside="/")
            install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
            enter(root, install, inside="/", env={"DEBIAN_FRONTEND": "noninteractive"})
            stamp.write_text(wanted)
        place_checkout(root / INSIDE)
        yield root


@contextlib.contextmanager
def alone(name: str) -> Iterator[Path]:
    """A directory of the cache, nobody else's meanwhile. Raises ToolError for a user who is not root."""
    if os.geteuid() != 0:
        raise ToolError("a root of another Debian needs root")
    place = cache_dir() / name
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that uses {place}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield place


def enter(
    root: Path,
    command: Sequence[str | Path],
    *,
    network: bool = True,
    env: Mapping[str, str] | None = None,
    inside: str = f"/{INSIDE}",
) -> None:
    """Run a command in a directory of the root, its checkout if not told, in namespaces that end with it.

    Without ``network`` it has a network namespace of its own as well. Raises ToolError when it fails.
    """
    namespaces = ["--mount", "--pid", "--fork", "--kill-child", *(() if network else ("--net",))]
    argv = [
        "unshare",
        *namespaces,
        "sh",
        os.fspath(_ENTER),
        os.fspath(root),
        os.fspath(cache_dir()),
        inside,
        *command,
    ]
    # Where this machine keeps things is not where that one does.
    own = {name: value for name, value in os.environ.items() if not name.startswith("ORLOP_TEST_")}
    for name in ("ORLOP_CACHE", "VIRTUAL_ENV", "TMPDIR", "MAKEFLAGS", "MAKELEVEL"):
        own.pop(name, None)
    own |= {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **(env or {})}
    done = subprocess.run(argv, env=own, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise ToolError(f"{' '.join(map(str, command))} in {root.parent.name} ended with {done.returncode}")


def _pristine(root: Path, number: str) -> bool:
    """Make the root if it is not there or not as it is made now; whether it was."""
    recipe = hashlib.sha256(inspect.getsource(_bootstrap).encode()).hexdigest()
    stamp = root.with_name("recipe")
    if root.exists() and stamp.exists() and stamp.read_text() == recipe:
        return False
    stamp.unlink(missing_ok=True)
    _bootstrap(root, number)
    stamp.write_text(recipe)
    return True


def _know_names(root: Path) -> None:
    """Let the root resolve the names that this machine can."""
    for name in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{name}", root / "etc" / name)


def _bootstrap(root: Path, number: str) -> None:
    """Make the root anew: Debian's smallest system, and apt configured as on this machine."""
    if shutil.which("debootstrap") is None:
        raise ToolError("there is no debootstrap: run ./setup.sh")
    release = RELEASES[number]
    sources = debian_sources(release)
    say(f"making a root of Debian {number} in {root} (minutes, once)")
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)
    making = root.with_name("making")
    subprocess.run(["rm", "-rf", "--one-file-system", making], check=True)
    mirror = sources[0].split()[1]
    # debootstrap mounts /proc and leaves it to its caller to take it away.
    command = [
        "debootstrap",
        "--variant=minbase",
        "--include=ca-certificates",
        release,
        os.fspath(making),
        mirror,
    ]
    run(["unshare", "--mount", *command])
    (making / "etc/apt/sources.list").write_text("\n".join(sources) + "\n")
    options = [line for line in run(["apt-config", "dump"]).splitlines() if _APT_OPTIONS.match(line)]
    (making / "etc/apt/apt.conf.d/90mirrors").write_text("\n".join(options) + "\n")
    making.rename(root)


def debian_sources(release: str) -> list[str]:
    """Lines of sources.list(5) for another release of Debian on the mirrors of this machine's apt.

    The first one is the archive itself; the others are its updates as far as this machine has them.
    """
    found = run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT) $(LABEL)",
            "Created-By: Packages",
        ]
    )
    lines = []
    for line in found.splitlines():
        uri, suite, component, label = (*line.split(" ", 3), "")[:4]
        if label.startswith("Debian") and component == "main":
            tail = suite.partition("-")[1:] if "/" not in suite else ("", "")
            lines.append(f"deb {uri} {release}{''.join(tail)} {component}")
    lines.sort(key=len)
    if not lines:
        raise ToolError("this machine's apt knows no archive of Debian (apt-get update?)")
    return list(dict.fromkeys(lines))


def make_tools() -> None:
    """Make in the cache, which a root shares, what the tests would otherwise make there. Raises ToolError."""
    tools.cri_tools()
    images.storage()
    asyncio.run(registry.registry_binary())


def place_checkout(target: Path) -> None:
    """Put what git knows, or would take, of this checkout into ``target``, which keeps its .venv."""
    # Whoever owns the checkout: root only reads its list of files.
    command = ["git", "-c", f"safe.directory={CHECKOUT}", "ls-files", "-z"]
    listed = run([*command, "--cached", "--others", "--exclude-standard"], cwd=CHECKOUT)
    target.mkdir(exist_ok=True)
    for path in target.iterdir():
        if path.name not in _KEPT:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in filter(None, listed.split("\0")):
        source = CHECKOUT / name
        if source.exists():  # git still knows what was just deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
