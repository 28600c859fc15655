"""The jail of a virtual machine's process, tried from inside with a shell in the machine's place."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.errors import FailedPrecondition, ResourceExhausted, Unavailable
from orlop.hypervisor.jail import ids
from orlop.hypervisor.jail.spawn import ENTRANCE, LIMITS, Jail, spawn
from orlop.hypervisor.jail.tree import TreeContents, prepare

BUSYBOX = Path("/bin/busybox")
CONTENTS = TreeContents(
    objects=(BUSYBOX,), directories=("/dev", "/pid", "/share", "/tmp"), texts=(("/image", ""),)
)
OWNER = ids.FIRST + 7 * ids.LENGTH


@pytest.fixture
async def place() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="orljail-") as directory:
        yield Path(directory)


async def say(place: Path, script: str, **changes: object) -> tuple[int, list[str]]:
    """What a shell in the jail writes, and how it ends."""
    tree = await prepare(place / "trees", CONTENTS)
    values: dict[str, object] = {"tree": tree, "owner": OWNER, "limits": LIMITS} | changes
    log = place / "log"
    with log.open("wb") as output:
        child = await spawn(
            Jail(**values),  # type: ignore[arg-type]
            ["/bin/busybox", "sh", "-c", f"b=/bin/busybox\n{script}"],
            log=output.fileno(),
        )
    return await child.wait(), log.read_text().splitlines()


async def test_it_sees_its_tree_and_no_more(place: Path) -> None:
    code, lines = await say(place, "$b ls /; $b ls /dev; set -- /pid/[0-9]*; echo $#; $b cat /etc/shadow")
    assert lines == ["bin", "dev", "image", "pid", "share", "tmp", "null", "1", lines[-1]]
    assert "No such file" in lines[-1]
    assert code == 1


@pytest.mark.parametrize(
    "attempt",
    [
        "echo x >/bin/new",
        "$b mount -t tmpfs none /tmp",
        "$b mount -o remount,rw /",
        "$b mknod /tmp/sda b 8 0",
        "$b chroot / $b true",
        "$b unshare -m $b true",
        "$b hostname other",
        "$b ls /proc/sys",
        "$b cat /pid/sys/kernel/core_pattern",
        "$b ip link add dummy0 type veth",
        "$b nice -n -5 $b true",
        "$b setuidgid 1 true",
    ],
)
async def test_what_it_must_not_do_fails(place: Path, attempt: str) -> None:
    code, lines = await say(place, attempt)
    assert code != 0, lines


async def test_it_is_root_over_ids_that_own_nothing(place: Path) -> None:
    tree = await prepare(place / "trees", CONTENTS)
    with (place / "log").open("wb") as output:
        child = await spawn(
            Jail(tree=tree, owner=OWNER, capabilities=("CHOWN",)),
            ["/bin/busybox", "sh", "-c", "while :; do :; done"],
            log=output.fileno(),
        )
    try:
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert f"Uid:\t{OWNER}\t{OWNER}\t{OWNER}\t{OWNER}" in status
        assert f"Gid:\t{OWNER}" in status
        assert "Groups:\t \n" in status
    finally:
        os.kill(child.pid, 9)
        await child.wait()


async def test_it_has_the_capabilities_it_was_given_over_its_own_users(place: Path) -> None:
    script = "$b grep -E '^(Cap|NoNewPrivs)' /pid/self/status"
    _, lines = await say(place, script, capabilities=("CHOWN", "FOWNER"))
    assert dict(line.split(":\t") for line in lines) == {
        "CapInh": "0" * 16,
        "CapPrm": "0000000000000009",
        "CapEff": "0000000000000009",
        "CapBnd": "0000000000000009",
        "CapAmb": "0" * 16,
        "NoNewPrivs": "1",
    }


async def test_it_reaches_no_process_and_no_network_of_the_host(place: Path) -> None:
    code, lines = await say(
        place, f"kill -9 {os.getpid()}; $b ip -o link show up; $b ip -o link | $b wc -l; $b hostname"
    )
    assert "No such process" in lines[0]
    assert lines[1:] == ["1", "vm"]
    assert code == 0


async def test_what_is_bound_is_read_only(place: Path) -> None:
    (place / "file").write_text("content")
    (place / "file").chmod(0o666)
    code, lines = await say(place, "$b cat /image && echo more >>/image", binds=((place / "file", "/image"),))
    assert lines[0].startswith("content")
    assert "Read-only file system" in lines[0]
    assert code != 0
    assert (place / "file").read_text() == "content"


async def test_limits_hold(place: Path) -> None:
    _, lines = await say(place, "ulimit -n; ulimit -c", limits={**LIMITS, resource.RLIMIT_NOFILE: 77})
    assert lines == ["77", "0"]


async def test_what_cannot_be_entered_says_why_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"cannot be entered.*missing"):
        await say(place, "true", binds=((place / "missing", "/image"),))


async def test_a_descriptor_in_the_way_is_not_lost_in_silence(place: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tree = await prepare(place / "trees", CONTENTS)
    with (place / "log").open("wb") as output:
        os.dup2(output.fileno(), ENTRANCE)
        try:
            with pytest.raises(Unavailable, match="in the way"):
                jail = Jail(tree=tree, owner=OWNER)
                await spawn(jail, ["/bin/busybox", "true"], log=output.fileno(), pass_fds=(ENTRANCE,))
        finally:
            os.close(ENTRANCE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_one_tree_serves_until_its_files_change(place: Path) -> None:
    first = await prepare(place, CONTENTS)
    assert await prepare(place, CONTENTS) == first
    other = await prepare(place, TreeContents(objects=(BUSYBOX,), directories=("/dev", "/pid", "/else")))
    assert other != first
    assert [path.name for path in place.glob("jail-*")] == [other.name]


def test_ranges_of_ids_belong_to_one_machine_each(place: Path) -> None:
    machines = [place / f"machine{number}" for number in range(3)]
    for machine in machines:
        machine.mkdir()
    claimed = [ids.claim(place / "ids", machine) for machine in machines]
    assert claimed == [ids.FIRST + number * ids.LENGTH for number in range(3)]
    machines[0].rmdir()
    more = [ids.claim(place / "ids", machines[2]) for _ in range(70)]
    assert len({*claimed, *more}) == 72, "what has ended is given again, and only that"
    assert sorted({*claimed, *more})[-1] == ids.FIRST + 71 * ids.LENGTH
    assert claimed[0] in more


def test_a_host_without_ranges_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_RANGES", 0)
    with pytest.raises(ResourceExhausted, match="ranges of user ids"):
        ids.claim(place / "ids", place)
