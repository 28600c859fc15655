"""What a CSI driver may write of a device that a VM is to mount, and who is refused."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import FailedPrecondition, NotFound
from orlop.guest.containers import filesystems
from orlop.storage import direct

PATH = "/var/lib/kubelet/pods/uid-1/volumes/kubernetes.io~csi/pvc-1/mount"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "direct-volumes"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    return path


def write(top: Path, text: str | bytes, path: str = PATH) -> Path:
    place = top / base64.urlsafe_b64encode(path.encode()).decode()
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)
    file = place / "mountInfo.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(0o600)
    return file


def found(top: Path, said: dict[str, Any]) -> direct.DirectVolume:
    write(top, json.dumps(said))
    volume = direct.find(PATH, "uid-1", os.fspath(top))
    assert volume is not None and volume[1] == ""
    return volume[0]


def test_what_a_driver_says_is_understood(top: Path, disk: Path) -> None:
    said = {
        "volume-type": "directvol",
        "Device": os.fspath(disk),
        "fstype": "ext3",
        "options": ["bind", "rw", "noatime", "data=ordered", "noatime"],
        "metadata": {"fsGroup": "2000", "fsGroupChangePolicy": "OnRootMismatch", "of the driver": "x"},
    }
    assert found(top, said) == direct.DirectVolume(
        path=PATH,
        device=os.fspath(disk),
        plain=True,
        kind="ext3",
        options=("noatime", "data=ordered"),
        group=2000,
        only_root=True,
    )
    assert found(top, {"device": os.fspath(disk), "options": ["ro"], "metadata": None}).read_only


def test_a_path_that_no_driver_speaks_of_is_none(top: Path, disk: Path) -> None:
    assert direct.find(PATH, "uid-1", os.fspath(top)) is None
    file = write(top, json.dumps({"device": os.fspath(disk)}))
    assert direct.find(f"{PATH}/sub", "uid-1", os.fspath(top)) is None
    assert direct.find(f"/{'long' * 100}", "uid-1", os.fspath(top)) is None
    assert direct.find(PATH, "uid-1", "") is None
    with pytest.raises(FailedPrecondition, match="its pod needs the handler vm"):
        direct.check_not_direct(PATH, "uid-1", os.fspath(top))
    file.unlink()
    direct.check_not_direct(PATH, "uid-1", os.fspath(top))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"volume-type": "vfiovol"}, "is of the type 'vfiovol'"),
        ({"fstype": "btrfs"}, "file system 'btrfs'; VMs mount ext4, ext3, ext2, xfs"),
        ({"fstype": 4}, "fstype .* is not text"),
        ({"options": "ro"}, "not a list"),
        ({"options": ["noatime"] * 33}, "not a list of at most 32"),
        ({"options": ["a,b"]}, "'a,b' is not an option"),
        ({"options": [["ro"]]}, "is not an option"),
        ({"metadata": {"encryptionKey": "x"}}, "asks for encryptionKey"),
        ({"metadata": {"fsGroup": "-1"}}, "'-1' is not the number of a group"),
        ({"metadata": {"fsGroup": str((1 << 32) - 1)}}, "is not the number of a group"),
        ({"metadata": {"fsGroupChangePolicy": "Never"}}, "'Never' is not a policy"),
        ({"metadata": []}, None),
        ({"metadata": ["x"]}, "metadata .* is no object"),
        ({"device": "disk"}, "names no device by an absolute path"),
        ({"device": ""}, "names no device"),
        ({"device": "/dev/null"}, "neither a block device nor a file"),
        ({"device": "/dev"}, "neither a block device nor a file"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(
    top: Path, disk: Path, said: dict[str, Any], reason: str | None
) -> None:
    whole = {"device": os.fspath(disk), **said}
    if reason is None:
        assert found(top, whole).group == -1
        return
    with pytest.raises(FailedPrecondition, match=f"volume {PATH}.*{reason}"):
        found(top, whole)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"{" + b" " * (64 << 10) + b"}"])
def test_what_is_no_document_is_refused(top: Path, text: bytes) -> None:
    write(top, text)
    with pytest.raises(FailedPrecondition, match="its mountInfo"):
        direct.find(PATH, "uid-1", os.fspath(top))


def test_a_device_that_has_gone_is_not_found(top: Path, disk: Path) -> None:
    disk.unlink()
    with pytest.raises(NotFound, match="No such file"):
        found(top, {"device": os.fspath(disk)})


def test_nobody_but_root_names_a_device(top: Path, disk: Path, tmp_path: Path) -> None:
    """Neither by a file that others may write to, nor through a link."""
    file = write(top, json.dumps({"device": os.fspath(disk)}))
    for one, mode in ((file, 0o620), (file.parent, 0o702)):
        before = stat.S_IMODE(one.stat().st_mode)
        one.chmod(mode)
        with pytest.raises(FailedPrecondition, match="somebody else than root"):
            direct.find(PATH, "uid-1", os.fspath(top))
        one.chmod(before)
    aside = tmp_path / "aside"
    file.rename(aside)
    file.symlink_to(aside)
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        direct.find(PATH, "uid-1", os.fspath(top))
    file.unlink()
    aside.rename(file)
    file.parent.rename(aside)
    file.parent.symlink_to(aside)
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        direct.find(PATH, "uid-1", os.fspath(top))


def test_a_group_gets_what_a_kubelet_would_give_it(tmp_path: Path) -> None:
    group, outside = os.getgid(), tmp_path / "outside"
    outside.touch(mode=0o600)
    outside.chmod(0o600)
    top = tmp_path / "volume"
    (top / "deep").mkdir(parents=True)
    (top / "deep/file").touch()
    (top / "link").symlink_to(outside)
    for path, mode in ((top, 0o700), (top / "deep", 0o500), (top / "deep/file", 0o4604)):
        path.chmod(mode)

    def modes() -> list[int]:
        return [stat.S_IMODE(path.stat().st_mode) for path in (top, top / "deep", top / "deep/file", outside)]

    filesystems.give(os.fspath(top), group, only_root=True)
    assert modes() == [0o2770, 0o2770, 0o4664, 0o600]
    # It is so already, says its root.
    (top / "deep/file").chmod(0o600)
    filesystems.give(os.fspath(top), group, only_root=True)
    assert modes()[2] == 0o600
    filesystems.give(os.fspath(top), group, only_root=False)
    assert modes()[2] == 0o660
