import asyncio
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.config import VmConfig
from orlop.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from orlop.guestos.build import GuestArtifacts
from orlop.host import process, threads
from orlop.hypervisor.base import Accelerator, GuestFiles, MachineShape
from orlop.hypervisor.qemu import QemuBackend, accelerator, cleanup, ending, errorlog, launch, memuse, record
from orlop.hypervisor.qemu.cmdline import Network, Sockets
from orlop.hypervisor.qemu.errorlog import ErrorLog
from orlop.hypervisor.qemu.hypervisor import QemuHypervisor, QemuMachines
from orlop.hypervisor.qemu.settings import QemuConfig

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


async def test_a_machine_that_cannot_be_reached_now_is_not_ended(tmp_path: Path) -> None:
    """Its record cannot be read, or nobody answers at its monitor: it runs all the same."""
    child = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        start_time = process.process_start_time(child.pid)
        record.save(tmp_path, msgspec.structs.replace(RECORD, pid=child.pid, start_time=start_time))
        with pytest.raises(Unavailable, match="cannot be reached"):
            await QemuMachines().recover(tmp_path)
        (tmp_path / "machine.json").unlink()
        (tmp_path / "machine.json").mkdir()
        with pytest.raises(Unavailable, match="cannot be read now"):
            await QemuMachines().recover(tmp_path)
        with pytest.raises(Unavailable, match="cannot be read now"):
            await QemuMachines().discard(tmp_path)
        assert child.returncode is None
    finally:
        child.kill()
        await child.wait()


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


def test_a_release_with_other_processor_models_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = accelerator.inputs("QEMU 7.2")
    assert accelerator.inputs("QEMU 7.2") == before
    monkeypatch.setattr(accelerator, "TCG_CPU", "another")
    assert accelerator.inputs("QEMU 7.2") != before


def test_a_trial_that_took_too_long_is_not_believed_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    slow = accelerator.Finding(
        Accelerator(kind="tcg", reason="busy"), "max", "inputs", until=now + accelerator.PASSING
    )
    accelerator.remember(tmp_path, slow)
    for now, believed in ((1000.0, True), (1599.0, True), (1601.0, False), (0.0, False)):
        assert (accelerator.remembered(tmp_path, "inputs") is not None) is believed, now


def written(directory: Path, text: str) -> ErrorLog:
    log = ErrorLog.new(directory)
    os.write(log.fileno(), text.encode())
    return log


def test_what_qemu_complains_of(tmp_path: Path) -> None:
    assert written(tmp_path, "").complaint() == ""
    said = "qemu: warning: nothing\nqemu: one\nqemu: two\n"
    assert written(tmp_path, said).complaint() == "qemu: one; qemu: two"
    registers = "EAX=00000000 EBX=00000000\n" * 40
    said = f"old error\nKVM internal error. Suberror: 1\nemulation failure\n{registers}"
    assert written(tmp_path, said).complaint() == "KVM internal error. Suberror: 1; emulation failure"
    said = f"KVM internal error. Suberror: 3\n{registers}"
    assert written(tmp_path, said).complaint() == "KVM internal error. Suberror: 3"


def test_an_error_log_cannot_grow_and_is_found_again(tmp_path: Path) -> None:
    log = ErrorLog.new(tmp_path)
    flood = [sys.executable, "-c", "import os\nfor _ in range(1000): os.write(2, b'x' * 1000)"]
    with (tmp_path / "file").open("wb") as file:
        assert subprocess.run(flood, stderr=file, check=False).returncode == 0
    assert (tmp_path / "file").stat().st_size == 1_000_000
    assert subprocess.run(flood, stderr=log.fileno(), check=False).returncode == 1
    assert 0 < os.fstat(log.fileno()).st_size <= 64 << 10
    with subprocess.Popen(["sleep", "60"], stderr=log.fileno()) as sleeper:
        again = ErrorLog.of_process(tmp_path, sleeper.pid)
        sleeper.kill()
    assert again.last_words() == log.last_words() != ""
    again.save()
    assert (tmp_path / errorlog.NAME).stat().st_size <= 64 << 10


def test_what_is_no_error_log_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("qemu: a lie\n" * 6000)
    for name in ("fifo", "file"):
        other = os.open(tmp_path / name, os.O_RDWR)
        with subprocess.Popen(["sleep", "60"], stderr=other) as sleeper:
            assert ErrorLog.of_process(tmp_path, sleeper.pid).last_words() == ""
            sleeper.kill()
        os.close(other)
    assert ErrorLog.of_process(tmp_path, 1 << 30).last_words() == ""


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("internal-error", "QEMU cannot go on with it: KVM internal error. Suberror: 1"),
        ("io-error", "a disk of it failed: KVM internal error. Suberror: 1"),
        ("guest-panicked", "the guest's kernel panicked: Attempted to kill init!"),
        *((state, "") for state in ("paused", "running", "shutdown", "postmigrate", "finish-migrate", "")),
    ],
)
def test_which_states_are_an_end(state: str, why: str) -> None:
    console = "x\n[    1.0] Kernel panic - not syncing: Attempted to kill init!\n[    1.0] CPU: 0\n"
    assert ending.reason(state, "KVM internal error. Suberror: 1", console) == why


def test_no_more_processors_than_kvm_recommends(guest: GuestFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "recommended_vcpus", lambda: 4)
    for asked, default, offered in ((8, 1, 4), (2, 1, 2), (8, 6, 6)):
        hypervisor = QemuBackend(VmConfig(max_vcpus=asked, default_vcpus=default)).booting(guest, Path("/r"))
        for kind, most in (("kvm", offered), ("tcg", default)):
            finding = accelerator.Finding(Accelerator(kind=kind, reason=""), "cpu")
            machine = hypervisor._template_launch(finding, Path("/m/x"), 7, shared=False)
            arguments = hypervisor._arguments(machine, 8, Sockets(3, 4), Network(5))
            assert arguments.max_vcpus == most


async def test_what_a_trial_of_kvm_comes_to(
    guest: GuestFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which failures are believed until something changes, and which for ten minutes."""
    tried: list[str] = []
    outcome: Exception | None = None

    async def prove(self: QemuHypervisor, finding: accelerator.Finding) -> None:
        tried.append(finding.cpu)
        if outcome is not None:
            raise outcome

    async def version(self: QemuHypervisor) -> str:
        return "1"

    monkeypatch.setattr(QemuHypervisor, "_prove", prove)
    monkeypatch.setattr(QemuHypervisor, "_version", version)
    monkeypatch.setattr(accelerator, "kvm_refusal", lambda: "")

    async def probe(**settings: object) -> Accelerator:
        tried.clear()
        config = VmConfig(others={"qemu": settings})
        return await QemuBackend(config).booting(guest, tmp_path).probe()

    outcome = DeadlineExceeded("the kernel said nothing within 7 seconds")
    found = await probe()
    assert found.kind == "tcg" and "said nothing within 7" in found.reason and tried == ["host"]
    assert (await probe()).kind == "tcg" and tried == [], "for the moment it is believed"
    begun = time.time()
    monkeypatch.setattr("time.time", lambda: begun + 601)
    outcome = Unavailable("QEMU cannot go on with it: KVM internal error. Suberror: 1")
    assert "KVM internal error" in (await probe()).reason and len(tried) == 2, "the other models were tried"
    monkeypatch.setattr("time.time", lambda: begun + 1e6)
    assert (await probe()).kind == "tcg" and tried == [], "what QEMU said holds"
    assert (await probe(cpu="Haswell")).kind == "tcg" and tried == ["Haswell"]
    assert (await probe(kvm_probe_timeout=60.0)).kind == "tcg" and tried != []
    with pytest.raises(FailedPrecondition, match="Suberror: 1"):
        await probe(accelerator="kvm")
    outcome = None
    assert (await probe(accelerator="kvm")).kind == "kvm" and tried == ["host"], "who insists gets it"
    assert (await probe(accelerator="kvm")).kind == "kvm" and tried == []


@pytest.fixture
def guest(tmp_path: Path) -> GuestFiles:
    files = [tmp_path / name for name in ("kernel", "initrd", "image")]
    for path in files:
        path.touch()
    kernel, initrd, image = files
    return GuestArtifacts(kernel=kernel, initrd=initrd, image=image, digest="d", size=0)


def test_the_inputs_change_with_qemu_and_guest() -> None:
    assert accelerator.inputs("a", "b") == accelerator.inputs("a", "b")
    assert len({accelerator.inputs(*pair) for pair in (("a", "b"), ("a", "c"), ("c", "b"))}) == 3


def test_last_words_are_the_last_lines_without_warnings(tmp_path: Path) -> None:
    assert written(tmp_path, "").last_words() == ""
    said = "x" * 5000 + "\nqemu: warning: this is nothing\nqemu: one\n\nqemu: two\n"
    words = written(tmp_path, said).last_words()
    assert words.endswith("qemu: one; qemu: two")
    assert len(words) <= 2100


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


@pytest.mark.parametrize("left", [0, 1])
async def test_a_machine_that_cannot_be_started_leaves_no_descriptor_open(tmp_path: Path, left: int) -> None:
    """Be it that the process may open no file more, or one."""
    image = tmp_path / "image"
    image.write_bytes(b"x")
    guest = GuestArtifacts(kernel=image, initrd=image, image=image, digest="x", size=1)
    hypervisor = QemuHypervisor(VmConfig(), QemuConfig(), guest, tmp_path / "root")
    finding = accelerator.Finding(Accelerator(kind="tcg", reason="a test"), "max")
    launch = hypervisor._template_launch(finding, tmp_path / "vm", 0, shared=False)
    tap = os.open("/dev/null", os.O_RDWR)
    try:
        # What asyncio and the thread pool have open for themselves is open now.
        await threads.call(lambda: None)
        before = open_files()
        free = next(number for number in range(len(before) + 1) if number not in before)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await hypervisor._launch(launch, tap_fd=tap)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert open_files() == before
        assert not (tmp_path / "vm").exists()
    finally:
        os.close(tap)


def open_files() -> set[int]:
    # Without the descriptor that the listing itself took.
    return {int(path.name) for path in list(Path("/proc/self/fd").iterdir()) if path.is_symlink()}
