"""What is remembered of pods and containers on disk, and figures made of counters."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import DataLoss, InvalidArgument, Unavailable
from orlop.sandbox.vm.files import (
    ContainerFile,
    PodFile,
    PodFiles,
    directory,
    owned_vms,
    pods_on_disk,
)
from orlop.wire.values import Disks, PluggedDisk

DISKS = Disks(
    root=(PluggedDisk(id="d", at=("scsi:3/1", "scsi:3/2")),),
    scratch=PluggedDisk(id="rw"),
    volumes=(PluggedDisk(id="v"),),
)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    files = PodFiles(tmp_path, "p1")
    assert files.read() is None
    pod = PodFile(pod_id="p1", vm_id="abc", set_up=True, addresses=("10.0.0.2",))
    files.write(pod)
    container = ContainerFile(id="c1", disks=DISKS)
    files.write_container(container)
    assert files.read() == pod
    assert files.containers() == [container]
    assert owned_vms(tmp_path) == {"abc"}
    assert pods_on_disk(tmp_path) == ["p1"]
    files.remove_container("c1")
    files.remove_container("c1")
    files.remove()
    files.remove()
    assert pods_on_disk(tmp_path) == []


def test_damaged_files(tmp_path: Path) -> None:
    files = PodFiles(tmp_path, "p1")
    files.write(PodFile(pod_id="p1"))
    files.write_container(ContainerFile(id="c1"))
    (files.directory / "c1.json").write_text("{")
    assert files.containers() == []
    (files.directory / "pod.json").write_text('{"pod_id": 7}')
    with pytest.raises(DataLoss, match=r"pod\.json"):
        files.read()
    assert directory(tmp_path) == tmp_path / "vm-pods"


def test_files_that_cannot_be_read_just_now_are_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a VM that runs would be nobody's, and a pod's removal would leave its VM behind."""
    files = PodFiles(tmp_path, "p1")
    files.write(PodFile(pod_id="p1", vm_id="abc"))
    files.write_container(ContainerFile(id="c1"))
    files.write_volumes(())

    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), os.fspath(path))

    looks: tuple[Callable[[], object], ...] = (
        files.read,
        files.containers,
        files.volumes,
        lambda: owned_vms(tmp_path),
    )
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        for look in looks:
            with pytest.raises(Unavailable, match="cannot be read now: Too many open files"):
                look()
    assert owned_vms(tmp_path) == {"abc"}


@given(st.text(max_size=200))
def test_ids_never_lead_out_of_the_directory(name: str) -> None:
    try:
        files = PodFiles(Path("/state"), name)
    except InvalidArgument:
        return
    assert files.directory.parent == Path("/state/vm-pods")
    assert ".." not in files.directory.parts
