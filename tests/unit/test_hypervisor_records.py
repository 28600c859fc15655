import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from orlop.hypervisor.base import Accelerator, MachineShape
from orlop.hypervisor.qemu import accelerator, cleanup, launch, memuse, record

RECORD = record.MachineRecord(
    pid=12,
    start_time=34,
    shape=MachineShape(memory_mib=512, vcpus=2),
    base_memory_mib=192,
    max_memory_mib=4096,
    disks=(("image", 1), ("scratch", 2)),
    next_lun=3,
)


def test_a_record_is_read_back(tmp_path: Path) -> None:
    record.save(tmp_path, RECORD)
    assert record.load(tmp_path) == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]


def test_no_record_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        record.load(tmp_path)


@given(st.binary(max_size=200))
def test_a_damaged_record_is_data_loss(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("vm")
    (directory / "machine.json").write_bytes(data)
    with pytest.raises(DataLoss):
        record.load(directory)


def test_memory_of_this_process() -> None:
    use = memuse.of_process(os.getpid())
    assert use.pss > 0
    assert use.private + use.shared >= use.pss


def test_memory_of_no_process() -> None:
    with pytest.raises(Unavailable):
        memuse.of_process(2**22 + 1)


def test_the_totals_of_a_rollup() -> None:
    text = (
        "00400000-7ffd000 ---p 00000000 00:00 0    [rollup]\nRss:   9 kB\nPss:   7 kB\n"
        "Pss_Dirty: 1 kB\nShared_Clean: 4 kB\nShared_Dirty: 1 kB\nPrivate_Clean: 2 kB\nPrivate_Dirty: 3 kB\n"
    )
    use = memuse.parse(text)
    assert (use.pss, use.private, use.shared) == (7 << 10, 5 << 10, 5 << 10)


@given(st.text())
def test_any_rollup_is_parsed(text: str) -> None:
    assert memuse.parse(text).pss >= 0


def test_what_was_found_out_is_remembered_for_the_same_inputs(tmp_path: Path) -> None:
    finding = accelerator.Finding(Accelerator(kind="kvm", reason="it booted"), "host", "inputs")
    accelerator.remember(tmp_path / "new", finding)
    assert accelerator.remembered(tmp_path / "new", "inputs") == finding
    assert accelerator.remembered(tmp_path / "new", "others") is None
    assert accelerator.remembered(tmp_path, "inputs") is None


def test_the_inputs_change_with_qemu_and_guest() -> None:
    assert accelerator.inputs("a", "b") == accelerator.inputs("a", "b")
    assert len({accelerator.inputs(*pair) for pair in (("a", "b"), ("a", "c"), ("c", "b"))}) == 3


def test_last_words_are_the_last_lines_without_warnings(tmp_path: Path) -> None:
    assert launch.last_words(tmp_path) == ""
    log = "x" * 5000 + "\nqemu: warning: this is nothing\nqemu: one\n\nqemu: two\n"
    (tmp_path / launch.ERROR_LOG).write_text(log)
    assert launch.last_words(tmp_path).endswith("qemu: one; qemu: two")
    assert len(launch.last_words(tmp_path)) <= 2100


def test_a_directory_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="shorter state directory"):
        launch._listen(tmp_path / ("d" * 108) / "qmp.sock")


def test_a_node_without_memory_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_available_kib", lambda: 1 << 10)
    with pytest.raises(ResourceExhausted, match="1 MiB available"):
        launch._check_memory()


async def test_removing_a_machine_that_never_was(tmp_path: Path) -> None:
    await cleanup.end(tmp_path / "none")
    await cleanup.remove(tmp_path / "none", whole=True)


async def test_a_socket_nobody_listens_on_is_no_machine(tmp_path: Path) -> None:
    path = tmp_path / launch.MONITOR_SOCKET
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    await cleanup.end(tmp_path)
    await cleanup.remove(tmp_path, whole=False)
    assert tmp_path.exists()
    assert not path.exists()
