"""A list of all that an installation consists of, as CycloneDX 1.6 (JSON): `make sbom`.

    sbom.py OUTPUT [GUEST]

The Python packages are those of packaging/requirements/runtime.txt with the hashes of their files. The
programs of the node are the Debian packages that setup.sh installs, with the versions that this machine has.
The parts of the guest are those of the image in GUEST, with the hashes of the packages that it was made of;
that is the last one that `orlop guest build` made unless another directory is named.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "packaging" / "requirements" / "runtime.txt"
GUEST = Path("/var/lib/orlop/guest/current")

_ENTRY = re.compile(
    r"^(\S+)==(\S+)(?: ; ([^\\\n]+?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


def python_parts(lock: Path = LOCK) -> Iterator[Component]:
    """The packages of a lock file: each hash is one of the files of that version, of which pip takes one."""
    for name, version, marker, hashes in _ENTRY.findall(lock.read_text(encoding="utf-8")):
        yield _part(
            PackageURL("pypi", None, name, version),
            "python",
            _HASH.findall(hashes),
            **({"only": marker} if marker else {}),
        )


def host_parts(setup: Path = ROOT / "setup.sh") -> Iterator[Component]:
    """The Debian packages that setup.sh installs to run pods; those that are missing here have no version."""
    listed = re.search(r'^runtime_packages="([^"]+)"', setup.read_text(encoding="utf-8"), re.M)
    assert listed is not None, f"{setup} has no list of packages"
    for name in listed[1].split():
        yield _part(PackageURL("deb", "debian", name, _installed(name) or None), "host")


def guest_parts(guest: Path = GUEST) -> Iterator[Component]:
    """The Debian packages that the guest image was made of; none where there is no image."""
    manifest = guest / "manifest.json"
    if not manifest.exists():
        print(f"sbom: there is no guest image in {guest}: its parts are left out", file=sys.stderr)
        return
    for package in json.loads(manifest.read_bytes())["packages"]:
        name = PackageURL("deb", "debian", package["name"], package["version"])
        yield _part(name, "guest", [package["sha256"]])


def document(guest: Path = GUEST) -> str:
    """The whole list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = (ROOT / "src" / "orlop" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "([^"]+)"', source, re.M)
    assert version is not None
    bom = Bom()
    bom.metadata.component = root = Component(
        name=project["name"],
        version=version[1],
        type=ComponentType.APPLICATION,
        description=project["description"],
        licenses=[DisjunctiveLicense(id="Apache-2.0")],
        purl=PackageURL("pypi", None, project["name"], version[1]),
        bom_ref="orlop",
    )
    parts = [*python_parts(), *host_parts(), *guest_parts(guest)]
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(root, parts)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _part(name: PackageURL, where: str, sha256: list[str] | None = None, **more: str) -> Component:
    properties = {"part": where, **more}
    return Component(
        name=name.name,
        version=name.version,
        type=ComponentType.LIBRARY if where == "python" else ComponentType.APPLICATION,
        purl=name,
        # One package may be on the host and in the guest.
        bom_ref=f"{where}:{name.to_string()}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one) for one in sha256 or ()],
        properties=[Property(name=f"orlop:{key}", value=value) for key, value in properties.items()],
    )


def _installed(package: str) -> str:
    try:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no Debian
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(document(*map(Path, sys.argv[2:3])), encoding="utf-8")
    print(target)
