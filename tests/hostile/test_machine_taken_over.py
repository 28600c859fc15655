"""Code that has taken a QEMU over and tries what is around it: the host, the other VMs, the template."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from orlop.host import process
from orlop.hypervisor.jail import ids
from orlop.sandbox.spec import Mount, Security
from orlop.sandbox.vm.sandbox import VmSandbox
from tests.e2e.vm_environment import Environment, container_spec, environment, execute, pod_spec
from tests.hostile.injected import Call, inject

RIGHTS = Security(capabilities=("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"))
REPOSITORY = Path(__file__).parents[2]


class Attack:
    """Two pods; one's QEMU is the intruder's."""

    def __init__(self, env: Environment, volume: Path, taken: VmSandbox, other: VmSandbox) -> None:
        self.env = env
        self.volume = volume
        self.taken = taken
        self.other = other

    @property
    def pid(self) -> int:
        """The QEMU that was taken over."""
        return self.taken._clone.machine.pid

    async def does(self, script: str) -> tuple[int, str]:
        """Exit status and output of a shell that stands where that QEMU stands."""
        argv = [sys.executable, "-m", "tests.hostile.intruder", str(self.pid), script]
        done = await process.run(argv, cwd=REPOSITORY, check=False)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Attack]:
    volume = tmp_path_factory.mktemp("volume")
    (volume / "file").write_text("content")
    async with environment() as env:
        pods = [pod_spec(), pod_spec()]
        taken, other = [await env.run(pod) for pod in pods]
        for pod, sandbox in zip(pods, (taken, other), strict=True):
            volumes = (Mount(container_path="/volume", host_path=str(volume)),) if sandbox is taken else ()
            container = container_spec(pod, "sleep", "1000", mounts=volumes, security=RIGHTS)
            await sandbox.create(container)
            await sandbox.start(container.id)
        yield Attack(env, volume, taken, other)


def status(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


@pytest.mark.asyncio(loop_scope="module")
async def test_it_is_nobody_on_the_host(attack: Attack) -> None:
    own, other = status(attack.pid), status(attack.other._clone.machine.pid)
    uid = int(own["Uid"].split()[0])
    assert uid >= ids.FIRST
    assert uid != int(other["Uid"].split()[0])
    assert own["Gid"].split() == [str(uid)] * 4
    assert own["Groups"].strip() == ""
    assert own["NoNewPrivs"] == "1"
    assert own["Seccomp"] == "2"
    for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        places = {Path(f"/proc/{pid}/ns/{name}").readlink() for pid in (attack.pid, os.getpid())}
        assert len(places) == 2, f"it shares the host's {name} namespace"


@pytest.mark.asyncio(loop_scope="module")
async def test_it_sees_no_file_of_the_host(attack: Attack) -> None:
    code, said = await attack.does("$b find / -xdev -type f | $b grep -v ^/usr/ | $b grep -v ^/lib")
    found = [path for path in said.split() if not path.startswith("/share/")]
    assert found == ["/proc/sys/vm/overcommit_memory"], code


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "script",
    [
        "$b cat /etc/shadow",
        "$b ls /root /home /var /run",
        "echo '|/bin/x' >/proc/sys/kernel/core_pattern",
        "$b cat /pid/sys/kernel/core_pattern",
        "$b mount -t proc proc /share",
        "$b mount -o remount,rw /",
        "$b mknod /dev/sda b 8 0",
        "echo x >/usr/bin/other",
        "echo x >/share/other",
        "$b nsenter -t 1 -m true",
        "$b unshare -Ur $b true",
        "$b chroot /share $b true",
        "$b ip link set lo up",
    ],
)
async def test_it_cannot(attack: Attack, script: str) -> None:
    code, said = await attack.does(script)
    assert code != 0, said


@pytest.mark.asyncio(loop_scope="module")
async def test_it_reaches_no_process_of_the_host(attack: Attack) -> None:
    for pid in (os.getpid(), attack.other._clone.machine.pid):
        code, said = await attack.does(f"kill -0 {pid}")
        assert code != 0, said


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_that_it_has_open_writes_to_what_others_use(attack: Attack) -> None:
    """The template, the image's layers, the guest's own image: it has them open, and cannot change them."""
    code, said = await attack.does(
        "for fd in /pid/1/fd/*; do t=$($b readlink $fd); "
        "case $t in *erofs*|*memory*|*state*) echo $t; (echo x >>$fd) 2>/dev/null && echo wrote; esac; done"
    )
    assert "memory" in said, (code, said)
    assert "root.erofs" in said
    assert "wrote" not in said


@pytest.mark.asyncio(loop_scope="module")
async def test_the_only_places_it_may_write_are_its_own(attack: Attack) -> None:
    writable = []
    for entry in Path(f"/proc/{attack.pid}/fdinfo").iterdir():
        words = dict(line.split(":\t", 1) for line in entry.read_text().splitlines() if ":\t" in line)
        flags = int(words["flags"], 8)
        target = os.fspath(Path(f"/proc/{attack.pid}/fd/{entry.name}").readlink())
        if flags & os.O_ACCMODE and target.startswith("/") and not target.startswith(("/dev/", "/memfd:")):
            writable.append(target)
    scratch = os.fspath(attack.env.config.root_dir / "vm-scratch" / attack.taken._clone.id)
    assert [path for path in writable if not path.startswith(scratch)] == []


@pytest.mark.asyncio(loop_scope="module")
async def test_its_own_volumes_are_served_with_the_owners_they_have(attack: Attack) -> None:
    (container,) = attack.taken._containers
    script = "id -u; cat /volume/file; echo more >/volume/new; chown 1000:2000 /volume/new; mkdir /volume/d"
    assert (await execute(attack.taken, container, "sh", "-c", script))[0] == b"0\ncontent"
    volume = attack.volume
    found = (volume / "new").stat()
    assert (found.st_uid, found.st_gid) == (1000, 2000)
    assert ((volume / "d").stat().st_uid, (volume / "new").read_text()) == (0, "more\n")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="injects code of x86-64")
async def test_it_cannot_make_its_disks_longer(attack: Attack) -> None:
    """Nor take room behind their ends: what they may take of the host's disk was agreed with the pod."""
    pid = attack.other._clone.machine.pid
    ftruncate, fallocate, pwrite64, keep_size = 77, 285, 18, 1
    for number, path in disks_of(attack.env, attack.other):
        size, blocks = path.stat().st_size, path.stat().st_blocks
        calls: list[Call] = [
            [ftruncate, number, size + (1 << 40)],
            [fallocate, number, 0, size, 64 << 20],
            [fallocate, number, keep_size, size, 64 << 20],
            [fallocate, number, 0x10 | keep_size, size, 64 << 20],
            [pwrite64, number, "61" * 512, 512, size + (1 << 30)],
        ]
        too_large, refused = -errno.EFBIG, -errno.EPERM
        assert await inject(pid, *calls) == [too_large, too_large, refused, refused, too_large]
        assert path.stat().st_size == size
        assert path.stat().st_blocks - blocks < (32 << 20) / 512
    (container,) = attack.other._containers
    code = await execute(
        attack.other, container, "sh", "-c", "head -c 70000000 /dev/zero >/f && sync && rm /f"
    )
    assert code[2] == 0, "the guest cannot use its disk"


@pytest.mark.asyncio(loop_scope="module")
async def test_files_of_a_volume_may_be_of_any_size(attack: Attack) -> None:
    (container,) = attack.taken._containers
    script = "truncate -s 100G /volume/large && echo x >>/volume/large && rm /volume/large"
    assert (await execute(attack.taken, container, "sh", "-c", script))[2] == 0


def disks_of(env: Environment, sandbox: VmSandbox) -> list[tuple[int, Path]]:
    """The files of a pod's disks that its QEMU has open for writing."""
    scratch = os.fspath(env.config.root_dir / "vm-scratch" / sandbox._clone.id)
    found = []
    for entry in Path(f"/proc/{sandbox._clone.machine.pid}/fd").iterdir():
        target = os.fspath(entry.readlink())
        if target.startswith(scratch):
            found.append((int(entry.name), Path(target)))
    assert found
    return found
