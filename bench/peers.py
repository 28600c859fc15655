"""The runtimes that Orlop is measured against, found on the machine or built from their Go modules."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.conformance import tools

CONTAINERD_VERSION = "2.3.4"
CRIO_VERSION = "1.34.0"
NERDCTL_VERSION = "2.2.1"
GVISOR_VERSION = "0.0.0-20250205023644-9414b50a5633"


def _build(
    peer: str,
    module: str,
    version: str,
    packages: dict[str, str],
    tags: str = "",
    prepare: Callable[[Path], None] = lambda _: None,
) -> Path:
    """A directory with the commands of a Go module, ``{name: package}``, built once and cached.

    ``prepare`` changes the module's source, in the directory that it is given.
    """
    target = tools.cache_dir() / "peers" / f"{peer}-{version}"
    if all((target / name).exists() for name in packages):
        return target
    go = tools.find_go()
    tools.say(f"building {', '.join(packages)} {version} (minutes, once)")
    with tempfile.TemporaryDirectory(prefix="orlop-peer-") as scratch_name:
        source = Path(scratch_name) / "source"
        shutil.copytree(_source(module, version), source)
        for path in (source, *source.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
        prepare(source)
        env = {"GOFLAGS": "-mod=mod -buildvcs=false", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        target.mkdir(parents=True, exist_ok=True)
        for name, package in packages.items():
            built = target / f".{name}"
            tools.run([go, "build", "-trimpath", "-tags", tags, "-o", built, package], cwd=source, env=env)
            built.rename(target / name)
    return target


def _source(module: str, version: str) -> Path:
    """The directory of a Go module's source, which is not to be written to."""
    with tempfile.TemporaryDirectory(prefix="orlop-peer-") as scratch:
        argv = [tools.find_go(), "mod", "download", "-json", f"{module}@v{version}"]
        directory = re.search(r'"Dir": "([^"]+)"', tools.run(argv, cwd=Path(scratch)))
    if directory is None:
        raise tools.ToolError(f"go mod download of {module} named no directory")
    return Path(directory[1])


def crio() -> Path:
    """The directory of CRI-O and of pinns, which makes and pins namespaces for it.

    Without what takes libraries that Debian has in no static form.
    """
    module = "github.com/cri-o/cri-o"
    tags = "containers_image_ostree_stub containers_image_openpgp exclude_graphdriver_btrfs btrfs_noversion"
    directory = _build("crio", module, CRIO_VERSION, {"crio": "./cmd/crio"}, tags)

    def pinns(scratch: Path) -> Path:
        sources = sorted((_source(module, CRIO_VERSION) / "pinns/src").glob("*.c"))
        tools.run(["cc", "-std=c99", "-Os", "-static", "-o", scratch / "pinns", *sources])
        return scratch / "pinns"

    tools.cached(directory / "pinns", pinns)
    return directory


def containerd() -> Path:
    """The directory of containerd, its runc shim and ctr."""
    packages = {name: f"./cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")}
    module = "github.com/containerd/containerd/v2"
    return _build("containerd", module, CONTAINERD_VERSION, packages, "no_btrfs no_devmapper no_zfs")


def nerdctl() -> Path:
    """The directory of nerdctl.

    What is there for its own tests needs a module that is not in the archive.
    """

    def prepare(source: Path) -> None:
        for path in (source / "cmd/nerdctl/helpers").glob("testing*.go"):
            path.unlink()
        lines = (source / "go.mod").read_text().splitlines(keepends=True)
        (source / "go.mod").write_text("".join(line for line in lines if "nerdctl/mod/tigron" not in line))

    packages = {"nerdctl": "./cmd/nerdctl"}
    return _build("nerdctl", "github.com/containerd/nerdctl/v2", NERDCTL_VERSION, packages, prepare=prepare)


def debian_containerd() -> Path:
    """The directory of the containerd that Debian ships, unpacked and not installed."""
    return tools.debian_packages(["containerd"]) / "usr/bin"


def debian_podman() -> Path:
    """The root of Debian's podman and what it needs, unpacked and not installed."""
    # Roots of other releases share the cache: by these the two are told apart.
    libraries = {
        "12": ("libassuan0", "libsubid4"),
        "13": ("libassuan9", "libsqlite3-0", "libsubid5"),
    }
    return tools.debian_packages(
        [
            "podman",
            "conmon",
            "crun",
            "netavark",
            "aardvark-dns",
            "libdevmapper1.02.1",
            "libgpgme11",
            "libseccomp2",
            "libyajl2",
            "golang-github-containers-common",
            *libraries[tools.release()],
        ]
    )


def gvisor() -> Path:
    """The directory of runsc and its containerd shim.

    The shim wants an OOM score of -999 and fails on a host whose root lacks CAP_SYS_RESOURCE.
    """

    def prepare(source: Path) -> None:
        file = source / "pkg/shim/service.go"
        file.write_text(file.read_text().replace("oomScoreMaxKillable = -999", "oomScoreMaxKillable = 0"))

    packages = {"runsc": "./runsc", "containerd-shim-runsc-v1": "./shim"}
    return _build("gvisor", "gvisor.dev/gvisor", GVISOR_VERSION, packages, prepare=prepare)


def search_path(*directories: Path) -> str:
    """A PATH with the directories in front."""
    return os.pathsep.join([*map(os.fspath, directories), os.environ.get("PATH", os.defpath)])
