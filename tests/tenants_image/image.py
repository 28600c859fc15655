"""The image of operator and agents: podman makes it of packaging/kubernetes/tenants.Dockerfile.

Its base is the smallest Debian 13, made by debootstrap, in place of the one that a registry has.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench import peers

from orlop.cli.demo.imagewriter import Pusher
from tests.conformance import images, tools
from tests.conformance.images import E2E
from tests.lab import root
from tests.node import OWN
from tests.node_e2e import images as node_images
from tests.node_e2e import programs

NAME, TAG = f"{OWN}/orlop-tenants", "1"
DOCKERFILE = root.CHECKOUT / "packaging/kubernetes/tenants.Dockerfile"
BASE = "localhost/base:13"
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")


class Builder:
    """Debian's podman with its storage below a directory, which makes images with runc."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._root = directory, peers.debian_podman()
        runtime = shutil.which("runc")
        if runtime is None:
            raise tools.ToolError("there is no runc: run ./setup.sh")
        libraries = [os.fspath(self._root / part / "x86_64-linux-gnu") for part in ("usr/lib", "lib")]
        engine = {
            "cgroup_manager": "cgroupfs",
            "events_logger": "file",
            "tmp_dir": f"{directory}/tmp",
            "helper_binaries_dir": [f"{self._root}/usr/lib/podman"],
        }
        policy = directory / ".config/containers/policy.json"
        policy.parent.mkdir(parents=True)
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        storage = {"driver": "overlay", "graphroot": f"{directory}/root", "runroot": f"{directory}/run"}
        for name, table in (("engine", engine), ("storage", storage)):
            text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            (directory / f"{name}.conf").write_text(f"[{name}]\n{text}")
        (directory / "registries.conf").touch()
        self._runtime = runtime
        # What pip knows here of mirrors is not so within.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        self._env = kept | {
            "HOME": os.fspath(directory),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "CONTAINERS_CONF": f"{directory}/engine.conf",
            "CONTAINERS_STORAGE_CONF": f"{directory}/storage.conf",
            "CONTAINERS_REGISTRIES_CONF": f"{directory}/registries.conf",
        }

    def __call__(self, *arguments: str) -> None:
        """Run a command of podman. Raises ToolError."""
        tools.run([self._root / "usr/bin/podman", *arguments], env=self._env)

    def import_base(self) -> None:
        """Have Debian as the image :data:`BASE`, with what this machine trusts."""
        archive = self._directory / "base.tar"
        with root.bare("13") as place:
            shutil.copy(TRUSTED, place / TRUSTED.relative_to("/"))
            (place / "etc/pip.conf").write_text(f"[global]\ncert = {TRUSTED}\n")
            tools.run(["tar", "-C", place, "-cf", archive, "."])
        self("import", os.fspath(archive), BASE)
        archive.unlink()

    def build(self, wheel: Path) -> None:
        """Make the image as its Dockerfile says."""
        context = self._directory / "context"
        context.mkdir()
        shutil.copy(wheel, context)
        options = ["--network=host", "--pull=never", f"--runtime={self._runtime}", f"--build-arg=BASE={BASE}"]
        self("build", *options, f"--file={DOCKERFILE}", f"--tag={NAME}:{TAG}", os.fspath(context))

    def push(self, address: str) -> None:
        """Push it to the registry at ``address``."""
        self("push", "--tls-verify=false", f"{NAME}:{TAG}", f"docker://{address}/{NAME}:{TAG}")

    def clear(self) -> None:
        """Let go of its storage."""
        subprocess.run(["umount", self._directory / "root/overlay"], capture_output=True, check=False)


def wheel(directory: Path) -> Path:
    """The wheel of this checkout."""
    python = root.CHECKOUT / ".venv/bin/python"
    source = directory / "source"
    root.place_checkout(source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", directory]
    tools.run([python, "-m", "pip", "wheel", *options, source])
    return next(directory.glob("orlop-*.whl"))


def fill(address: str) -> None:
    """Push the image, and the one of the tests' pods, to the registry at ``address``."""
    agnhost = node_images.agnhost_image(programs.build(programs.CLUSTER))
    Pusher(address).push(f"{E2E}/agnhost", ["2.63.0"], agnhost)
    tools.say("making the image of operator and agents (a minute or two)")
    with tempfile.TemporaryDirectory(prefix="orlop-image-", ignore_cleanup_errors=True) as name:
        builder = Builder(Path(name))
        try:
            builder.import_base()
            builder.build(wheel(Path(name)))
            builder.push(address)
        finally:
            builder.clear()


def storage() -> Path:
    """A registry's storage with these images, made once for each version of what is in them."""
    digest = hashlib.sha256(node_images.key(programs.build(programs.CLUSTER)).encode())
    sources = sorted((root.CHECKOUT / "src").rglob("*"))
    for path in (Path(__file__), DOCKERFILE, root.CHECKOUT / "pyproject.toml", *sources):
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in os.fspath(path):
            digest.update(path.read_bytes())
    return images.stored("tenants-registry", digest.hexdigest()[:16], fill)
