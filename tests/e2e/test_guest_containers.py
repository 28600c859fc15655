"""The agent in a real VM: containers, execs, what they may and what they see. Needs root and QEMU."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from orlop.guestos.build import GuestArtifacts, build
from orlop.sandbox.spec import Mount as HostMount
from orlop.storage import disks
from orlop.storage.share import Share
from orlop.wire import messages
from orlop.wire.values import (
    GuestDevice,
    GuestLimits,
    GuestMount,
    GuestNamespaces,
    GuestRlimit,
    IdRange,
    PluggedDisk,
)
from tests.e2e.guest_machine import CAPABILITIES, CONFIG, TIMEOUT, Guest, fresh_guest, read_all, security
from tests.e2e.vm_environment import CACHE, busybox_layer


@pytest.fixture(scope="session")
def artifacts() -> GuestArtifacts:
    return asyncio.run(build(CACHE / "guest"))


@pytest.fixture(scope="session")
def templates() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="orlop-guest-"))
    yield root
    shutil.rmtree(root)


class Open(Protocol):
    def __call__(self, **setup: Any) -> AbstractAsyncContextManager[Guest]: ...


@pytest.fixture
def fresh(artifacts: GuestArtifacts, templates: Path) -> Iterator[Open]:
    place = Path(tempfile.mkdtemp(prefix="orlop-vm-"))
    yield lambda **setup: fresh_guest(artifacts, templates, place, **setup)
    shutil.rmtree(place)


@pytest.fixture
async def guest(fresh: Open) -> AsyncIterator[Guest]:
    async with fresh() as one:
        yield one


def layer(content: dict[str, str], links: dict[str, str] | None = None) -> str:
    """A layer with these files and symbolic links."""
    with tempfile.TemporaryDirectory() as work:
        for name, text in content.items():
            path = Path(work) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name, goal in (links or {}).items():
            path = Path(work) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(goal)
        target = Path(tempfile.mkstemp(suffix=".erofs")[1])
        target.unlink()
        subprocess.run(["mkfs.erofs", target, work], check=True, capture_output=True)
    return os.fspath(target)


async def test_a_container_from_create_to_delete(guest: Guest) -> None:
    script = "echo out; echo err >&2; id -u; hostname; cat /etc/resolv.conf; exit 3"
    finished = await guest.run("one", "sh", "-c", script)
    assert finished.exit.code == 3
    assert finished.out.splitlines() == ["out", "0", "pod", "nameserver 192.0.2.53"]
    assert finished.err == "err\n"
    state = await guest.agent.call(messages.Dump())
    assert state.containers == ()
    assert state.streams == ()


async def test_what_a_container_sees(guest: Guest) -> None:
    script = (
        "ps > /ps; wc -l < /ps; readlink /dev/fd; readlink /dev/ptmx; "
        "for d in null zero full random urandom tty; do "
        "test -c /dev/$d || echo no $d; done; test -d /dev/shm; echo x > /dev/null; cat /proc/self/cgroup; "
        "touch /proc/sys/x 2>/dev/null || echo proc is safe; cat /proc/kcore | wc -c; ls /proc/acpi | wc -l; "
        "touch /sys/x 2>/dev/null || echo sys is safe; ls /proc/self/fd | wc -l; cat /proc/1/oom_score_adj"
    )
    finished = await guest.run("one", "sh", "-c", script, security=security(oom_score_adj=123))
    assert finished.out.splitlines() == [
        "3", "/proc/self/fd", "pts/ptmx", "0::/", "proc is safe", "0", "0", "sys is safe", "4", "123",
    ], finished  # fmt: skip


async def test_layers_are_stacked_in_order(guest: Guest) -> None:
    top = layer({"etc/hello": "top\n", "etc/group": "other:x:9:\n"})
    image = await guest.plug(busybox_layer(), top)
    finished = await guest.run("one", "cat", "/etc/hello", "/etc/group", root=(image,))
    assert finished.out == "top\nother:x:9:\n"
    Path(top).unlink()


@pytest.mark.parametrize("hotplug", [False, True])
@pytest.mark.parametrize("count", [1, 3])
async def test_disks_in_kept_devices_and_in_new_ones(guest: Guest, count: int, *, hotplug: bool) -> None:
    layers = [busybox_layer(), layer({"a": "2\n"}), layer({"a": "3\n"})]
    scheme = "scsi:" if hotplug else "scsi-kept:"
    for number in range(2):
        image = await guest.plug(*layers[:count], reversible=hotplug)
        scratch = await disks.scratch_disk(guest.place / f"{number}.img", CONFIG.scratch_mib)
        upper = await guest.plug(scratch, read_only=False, reversible=hotplug)
        assert all(place.startswith(scheme) for place in (*image.at, *upper.at))
        finished = await guest.run(
            f"c{number}", "sh", "-c", "cat /a 2>/dev/null || echo 1; ls /mine; >/mine; df -m / | tail -n 1",
            root=(image,), scratch=upper,
        )  # fmt: skip
        lines = finished.out.splitlines()
        assert lines[0] == str(count)
        assert finished.err == "ls: /mine: No such file or directory\n", "nothing of the disk before"
        assert int(lines[-1].split()[1]) > CONFIG.scratch_mib * 0.9, "the disk is as large as it says"
    for path in layers[1:]:
        Path(path).unlink()


async def test_users_groups_and_capabilities(guest: Guest) -> None:
    show = "id; grep -E 'Cap(Inh|Prm|Bnd|Amb)|NoNewPrivs' /proc/self/status; echo $HOME; echo > /dev/stdout"
    merged = await guest.run("a", "sh", "-c", show, security=security(user="web", supplemental_groups=(7,)))
    assert "uid=1000(web) gid=1000(web) groups=7,1000(web),2000(extra)" in merged.out
    assert "CapPrm:\t0000000000000000" in merged.out
    strict = await guest.run(
        "b", "sh", "-c", show,
        security=security(user="1000", group="5", strict_groups=True, no_new_privs=True),
    )  # fmt: skip
    assert "uid=1000(web) gid=5 groups=5\n" in strict.out
    assert "NoNewPrivs:\t1" in strict.out
    ambient = await guest.run(
        "c", "sh", "-c", show, security=security(user="1000", ambient=("NET_BIND_SERVICE",))
    )
    assert "CapAmb:\t0000000000000400" in ambient.out
    few = await guest.run("d", "sh", "-c", show, security=security(bounding=("CHOWN",), effective=("CHOWN",)))
    assert "CapBnd:\t0000000000000001" in few.out
    with pytest.raises(InvalidArgument, match="unable to find user nobody-here"):
        await guest.create("e", "true", security=security(user="nobody-here"))
    assert (await guest.agent.call(messages.Dump())).containers == ()


async def test_what_cannot_be_executed(guest: Guest) -> None:
    for name, text in (
        ("no-such", 'exec: "no-such": executable file not found in $PATH'),
        ("/no/such", 'exec: "/no/such": stat /no/such: no such file or directory'),
        ("/etc", 'exec: "/etc": is a directory'),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await guest.create("bad", name)
        assert text in str(caught.value)
    await guest.create("good", "sleep", "1000")
    await guest.start("good")
    with pytest.raises(InvalidArgument, match="executable file not found"):
        await guest.exec("good", "no-such")
    with pytest.raises(NotFound):
        await guest.start("nobody")
    with pytest.raises(FailedPrecondition):
        await guest.start("good")


async def test_big_arguments_and_odd_environment(guest: Guest) -> None:
    big = "x" * 100_000
    finished = await guest.run(
        "one", "sh", "-c", 'echo ${#1} ${#BIG}; printf %s "$ODD" | od -An -tx1', "sh", big,
        env=(("BIG", b"y" * 120_000), ("ODD", b"\xff\xfe \n")),
    )  # fmt: skip
    assert finished.out == "100000 120000\n ff fe 20 0a\n"


async def test_terminals(guest: Guest) -> None:
    await guest.create("shell", "sh", "-c", "tty; read line; echo got $line; stty size", tty=True, stdin=True)
    await guest.start("shell")
    await guest.agent.call(messages.Resize(id="shell", width=123, height=45))
    into, out, _ = guest.streams["shell"]
    assert into is not None
    await into.write(b"hello\n")
    text = await read_all(out)
    assert "/dev/pts/0" in text
    assert "got hello" in text
    assert "45 123" in text
    assert (await guest.exit_of("shell")).code == 0


async def test_exec(guest: Guest) -> None:
    await guest.create("one", "sleep", "1000", env=(("NAME", b"value"),), cwd="/made/for/it")
    await guest.start("one")
    finished = await guest.exec("one", "sh", "-c", "echo $NAME; pwd; exit 7")
    assert (finished.exit.code, finished.out) == (7, "value\n/made/for/it\n")
    show = "tty; until stty size 2>/dev/null | grep -v ^0; do :; done"
    terminal = await guest.begin("one", "sh", "-c", show, tty=True)
    await guest.agent.call(messages.Resize(id="one", exec_id=terminal, width=80, height=25))
    assert (await guest.finish(terminal)).out == "/dev/pts/0\r\n25 80\r\n"
    late = await guest.begin("one", "sleep", "100")
    await guest.agent.call(messages.Signal(id="one", exec_id=late, signal=9))
    assert (await guest.exit_of(late)).code == 137
    assert (await guest.exec("one", "sh", "-c", "ps | grep -c 'sleep 100$'")).out == "0\n"
    killed = await guest.exec("one", "sh", "-c", "kill -9 $$")
    assert killed.exit.code == 137


async def test_stdin_of_a_megabyte(guest: Guest) -> None:
    await guest.create("one", "md5sum", stdin=True)
    await guest.start("one")
    into, out, _ = guest.streams["one"]
    assert into is not None
    await into.write(b"0123456789abcdef" * 65536)
    into.end()
    assert (await read_all(out)).split()[0] == "14d785daab3823736c981ca82a750c98"
    assert (await guest.exit_of("one")).code == 0


async def test_volumes(guest: Guest) -> None:
    volume, single = guest.place / "volume", guest.place / "single"
    volume.mkdir()
    (volume / "file").write_text("from the host\n")
    single.write_text("one file\n")
    jail = guest.machine.confinement
    # The directory itself is read-only for QEMU: volumes are mounts below it.
    share = Share(guest.place / "share", process=guest.machine.pid, inside=jail.share if jail else None)
    for name, path in (("v", volume), ("single", single)):
        await share.add(HostMount(container_path=f"/{name}", host_path=str(path)), name)
    image = await guest.plug(layer({"sub/two": "two\n", "one": "one\n"}))
    finished = await guest.run(
        "one", "sh", "-c",
        "cat /rw/file /deep/er/file; echo back > /rw/new; "
        "for d in /ro /image /read/only; do touch $d/x 2>&1; done; "
        "cat /image/two; df -k /small | tail -1",
        mounts=(
            GuestMount(target="/rw", kind="share", source="v"),
            GuestMount(target="/ro", kind="share", source="v", read_only=True, recursive_read_only=True),
            GuestMount(target="/read/only", kind="tmpfs", read_only=True),
            GuestMount(target="/deep/er/file", kind="share", source="single"),
            GuestMount(target="/image", kind="image", volume=image.id, source="sub"),
            GuestMount(target="/small", kind="tmpfs", size=1 << 20),
        ),
        volumes=(image,),
    )  # fmt: skip
    assert finished.out.startswith("from the host\none file\n")
    assert finished.out.count("Read-only file system") == 3
    assert "two\n" in finished.out
    assert "1024" in finished.out
    assert (volume / "new").read_text() == "back\n"
    with pytest.raises(InvalidArgument, match="No such file"):
        await guest.create("two", "true", mounts=(GuestMount(target="/x", kind="share", source="missing"),))


async def test_links_of_an_image_lead_no_mount_out_of_it(guest: Guest) -> None:
    top = layer({}, {"etc/resolv.conf": "../run/dangling/resolv.conf", "out": "/run/orlop"})
    image = await guest.plug(busybox_layer(), top)
    finished = await guest.run(
        "one", "sh", "-c", "cat /etc/resolv.conf; ls /run/orlop",
        root=(image,), mounts=(GuestMount(target="/out/here", kind="tmpfs"),),
    )  # fmt: skip
    assert finished.out == "nameserver 192.0.2.53\nhere\n"
    Path(top).unlink()


async def test_a_read_only_root(guest: Guest) -> None:
    finished = await guest.run(
        "one", "sh", "-c", "touch /x; touch /dev/shm/x && echo shm", security=security(read_only_root=True)
    )
    assert "Read-only file system" in finished.err
    assert finished.out == "shm\n"


async def test_privileged(guest: Guest) -> None:
    finished = await guest.run(
        "one", "sh", "-c", "mkdir /m; mount -t tmpfs x /m && echo mounted; test -c /dev/kmsg && echo devices",
        security=security(privileged=True, masked_paths=(), read_only_paths=(),
                          bounding=(*CAPABILITIES, "SYS_ADMIN"), effective=(*CAPABILITIES, "SYS_ADMIN")),
    )  # fmt: skip
    assert finished.out == "mounted\ndevices\n"


async def test_devices_are_not_for_everybody(guest: Guest) -> None:
    script = (
        "mknod /sda b 8 0; mknod /n c 1 3; echo x > /n && echo null; head -c 1 /sda; head -c 1 /dev/hwrng"
    )
    finished = await guest.run("one", "sh", "-c", script)
    assert finished.out == "null\n"
    assert finished.err.count("Operation not permitted") == 1
    device = GuestDevice(path="/dev/mine", source="/dev/sda", access="r")
    finished = await guest.run(
        "two", "sh", "-c", "head -c 1 /dev/mine | wc -c; echo > /dev/mine", devices=(device,)
    )
    assert finished.out == "1\n"
    assert "Operation not permitted" in finished.err
    with pytest.raises(InvalidArgument, match="no device /dev/nowhere"):
        await guest.create("three", "true", devices=(GuestDevice(path="/dev/x", source="/dev/nowhere"),))


async def test_limits(guest: Guest) -> None:
    finished = await guest.run(
        "one", "sh", "-c", "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max cpu.weight; ulimit -n",
        resources=GuestLimits(
            memory_max=64 << 20, pids_max=50, cpu_quota_us=50000, cpu_period_us=100000, cpu_weight=42
        ),
        security=security(rlimits=(GuestRlimit(name="NOFILE", soft=77, hard=88),)),
    )  # fmt: skip
    assert finished.out == f"{64 << 20}\n50\n50000 100000\n42\n77\n"


async def test_out_of_memory(guest: Guest) -> None:
    finished = await guest.run(
        "one", "sh", "-c", "tail /dev/zero; echo survived",
        resources=GuestLimits(memory_max=20 << 20, memory_swap_max=-1, unified=(("memory.oom.group", "1"),)),
    )  # fmt: skip
    assert (finished.exit.code, finished.exit.oom_killed, finished.out) == (137, True, "")
    assert messages.OutOfMemory(id="one") in guest.events


async def test_limits_change_while_it_runs(guest: Guest) -> None:
    await guest.create("one", "sleep", "1000")
    await guest.start("one")
    await guest.agent.call(messages.Update(id="one", resources=GuestLimits(memory_max=99 << 20)))
    assert (await guest.exec("one", "cat", "/sys/fs/cgroup/memory.max")).out == f"{99 << 20}\n"
    with pytest.raises(InvalidArgument, match=r"cpu\.weight"):
        await guest.agent.call(
            messages.Update(id="one", resources=GuestLimits(unified=(("cpu.weight", "x"),)))
        )


async def test_pid_namespaces(guest: Guest) -> None:
    shared = GuestNamespaces(pid="pod")
    for name in ("a", "b"):
        await guest.create(name, "sleep", "1000", namespaces=shared)
        await guest.start(name)
    assert (await guest.exec("a", "sh", "-c", "ps | grep -c '[s]leep 1000'")).out == "2\n"
    assert "/pause" in (await guest.exec("a", "cat", "/proc/1/cmdline")).out
    await guest.create("c", "sleep", "2000")
    await guest.start("c")
    await guest.create(
        "d", "sh", "-c", "ps | grep -c '[s]leep 2000'", namespaces=GuestNamespaces(pid="target", target="c")
    )
    await guest.start("d")
    assert (await guest.finish("d")).out == "1\n"
    await guest.delete("a")
    assert (await guest.exec("b", "sh", "-c", "ps | grep -c '[s]leep 1000'")).out == "1\n"


@pytest.mark.parametrize("pid", ["container", "pod"])
async def test_user_namespaces(guest: Guest, pid: Any) -> None:
    mapping = (IdRange(inner=0, outer=100000, length=65536),)
    mapped = GuestNamespaces(uid_mappings=mapping, gid_mappings=mapping, pid=pid)
    for name in ("one", "two"):
        await guest.create(name, "sleep", "1000", namespaces=mapped, security=security(user="web"))
        await guest.start(name)
        show = "id -u; stat -c %u /bin/busybox; cat /proc/self/uid_map; echo > /dev/stderr"
        lines = (await guest.exec(name, "sh", "-c", show)).out.split()
        assert lines == ["1000", "0", "0", "100000", "65536"]
        assert (await guest.exec(name, "tty", tty=True)).out == "/dev/pts/0\r\n"


async def test_ports_of_the_pod(guest: Guest) -> None:
    serve = "mkdir /w; echo hello > /w/index.html; exec httpd -f -p 80 -h /w"
    await guest.create("one", "sh", "-c", serve, security=security(bounding=(), effective=()))
    await guest.start("one")
    async with asyncio.timeout(TIMEOUT):
        while True:
            stream = guest.agent.new_stream()
            incoming, outgoing = guest.agent.incoming(stream), guest.agent.outgoing(stream)
            try:
                await guest.agent.call(messages.Connect(stream=stream, port=80))
                break
            except Unavailable:
                await asyncio.sleep(0.1)
    await outgoing.write(b"GET / HTTP/1.0\r\n\r\n")
    assert (await read_all(incoming)).endswith("hello\n")
    outgoing.end()
    with pytest.raises(Unavailable, match="refused"):
        await guest.agent.call(messages.Connect(stream=guest.agent.new_stream(), port=9))


async def test_statistics(guest: Guest) -> None:
    await guest.create("one", "sh", "-c", "head -c 3000000 /dev/zero > /file; echo done; exec sleep 1000")
    await guest.start("one")
    _, out, _ = guest.streams["one"]
    assert await out.read() == b"done\n"
    reply = await guest.agent.call(messages.Stats(full=True))
    (one,) = reply.containers
    assert one.usage.memory > 0
    assert one.usage.pids == 1
    assert one.usage.cpu_ns > 0
    assert 3_000_000 <= one.layer.used < 5_000_000 < one.layer.size
    assert 0 < one.layer.inodes_free < one.layer.inodes_total
    assert one.usage.processes == 1
    assert one.usage.descriptors >= 3
    assert one.usage.memory_pressure is not None
    assert reply.system_memory_total > reply.system_memory_available > 0


async def test_nothing_is_lost_while_no_daemon_runs(guest: Guest) -> None:
    await guest.create(
        "one", "sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 5"
    )
    await guest.start("one")
    _, out, _ = guest.streams["one"]
    text = await out.read()
    out.consumed(len(text))
    await guest.reconnect()
    state = await guest.agent.call(messages.Dump())
    (container,) = state.containers
    stream = container.streams.stdout
    again = guest.agent.incoming(stream, offset=len(text))
    await guest.agent.call(messages.Resume(streams=((stream, len(text)), (container.streams.stderr, 0))))
    text += (await read_all(again)).encode()
    assert text.decode() == "".join(f"line {number}\n" for number in range(3000))
    assert (await guest.exit_of("one")).code == 5
    state = await guest.agent.call(messages.Dump())
    (container,) = state.containers
    assert container.exit is not None
    assert container.exit.code == 5


async def test_an_exec_that_no_daemon_wants_is_killed(guest: Guest) -> None:
    await guest.create("one", "sleep", "1000")
    await guest.start("one")
    running = asyncio.create_task(guest.exec("one", "sleep", "500"))
    await asyncio.sleep(1)
    running.cancel()
    await guest.reconnect()
    await guest.agent.call(messages.Resume())
    script = "while ps | grep '[s]leep 500'; do sleep 0.1; done; echo gone"
    assert (await guest.exec("one", "sh", "-c", script)).out.endswith("gone\n")


async def test_setup_can_be_repeated_until_there_is_a_container(guest: Guest) -> None:
    await guest.agent.call(messages.Setup(hostname="second"))
    await guest.agent.call(messages.Setup(hostname="third"))
    show = "hostname; cat /etc/hostname; df -k /dev/shm | tail -1"
    lines = (await guest.run("one", "sh", "-c", show)).out.split()
    assert lines[:2] == ["third", "third"]
    assert str(64 << 10) in lines
    await guest.create("two", "true")
    with pytest.raises(FailedPrecondition):
        await guest.agent.call(messages.Setup(hostname="fourth"))


async def test_nothing_is_mounted_over_a_proc_that_was_asked_for_as_it_is(guest: Guest) -> None:
    """A proc with mounts on it cannot be mounted again in a user namespace, which is what it is asked for."""
    plain = security(masked_paths=(), read_only_paths=())
    show = "grep -c ' /proc' /proc/self/mounts; cat /proc/sys/kernel/random/boot_id"
    found = (await guest.run("one", "sh", "-c", show, security=plain)).out.split()
    assert found[0] == "1"
    assert uuid.UUID(found[1])


async def test_what_is_not_there_is_said(guest: Guest) -> None:
    with pytest.raises(Unavailable, match="no disk appeared at scsi:999 within 10 seconds"):
        await guest.create("one", "true", root=(PluggedDisk(id="none", at=("scsi:999",)),))
    empty = guest.place / "empty"
    empty.write_bytes(b"\0" * (1 << 20))
    disk = await guest.plug(empty)
    with pytest.raises(FailedPrecondition, match="cannot mount erofs"):
        await guest.create("two", "true", root=(disk,))
    scratch = await disks.scratch_disk(guest.place / "s.ext4", 64)
    upper = await guest.plug(scratch, read_only=False)
    assert (await guest.run("three", "sh", "-c", "echo x > /y; cat /y", scratch=upper)).out == "x\n"
    assert (await guest.run("four", "true", scratch=None)).exit.code == 0
    with pytest.raises(InvalidArgument, match="does not know how to find a disk"):
        await guest.create("five", "true", root=(PluggedDisk(id="odd", at=("nvme:1",)),))


async def test_two_calls_at_once_on_one_container_are_both_answered(guest: Guest) -> None:
    await guest.create("one", "sleep", "1000")
    starts = await asyncio.gather(guest.start("one"), guest.start("one"), return_exceptions=True)
    assert [type(outcome) for outcome in starts] == [type(None), FailedPrecondition]
    await asyncio.gather(guest.delete("one"), guest.delete("one"))
    await guest.create("two", "sleep", "1000")
    start, deleted = await asyncio.gather(guest.start("two"), guest.delete("two"), return_exceptions=True)
    assert start is None or isinstance(start, FailedPrecondition)
    assert deleted is None
    making = asyncio.create_task(guest.create("three", "true", scratch=None))
    await asyncio.sleep(0)
    await guest.delete("three")
    with suppress(FailedPrecondition):
        await making
    await guest.delete("three")
    assert (await guest.agent.call(messages.Dump())).containers == ()


async def test_what_nobody_waits_for_any_more_is_not_made(guest: Guest) -> None:
    making = asyncio.create_task(
        guest.create("one", "true", root=(PluggedDisk(id="none", at=("scsi:999",)),))
    )
    await asyncio.sleep(0.5)
    making.cancel()
    await guest.reconnect()
    assert (await guest.agent.call(messages.Dump())).containers == ()
    await guest.agent.call(messages.Resume())
    assert (await guest.run("one", "true")).exit.code == 0


async def test_a_disk_that_is_waited_for_keeps_nobody_else_waiting(guest: Guest) -> None:
    making = asyncio.create_task(
        guest.create("one", "true", root=(PluggedDisk(id="none", at=("scsi:999",)),))
    )
    await asyncio.sleep(1)
    begun = time.monotonic()
    await guest.agent.call(messages.Ping())
    assert (await guest.run("two", "true")).exit.code == 0
    assert time.monotonic() - begun < 8, "all of it while the other one is waited for"
    assert not making.done()
    await guest.delete("one")
    with pytest.raises(FailedPrecondition, match="deleted meanwhile"):
        await making
