"""Block devices of the host that containers get as devices: each is a disk of the VM.

A kubelet hands a volume of mode Block so, as a path that leads to the device. The guest sees its size; when
the device grows, nobody calls the runtime, so the host's kernel is asked now and then.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from orlop.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, OrlopError
from orlop.host import blockdevices, threads
from orlop.host.tasks import Tasks
from orlop.hypervisor.base import Machine
from orlop.sandbox.rules import OutsideVm
from orlop.sandbox.spec import ContainerSpec, Device
from orlop.wire import values as wire
from orlop.wire.hello import BLOCKS

log = logging.getLogger(__name__)

GUEST_DEVICES = frozenset(
    {
        "/dev/full",
        "/dev/fuse",
        "/dev/loop-control",
        "/dev/net/tun",
        "/dev/null",
        "/dev/random",
        "/dev/tty",
        "/dev/urandom",
        "/dev/zero",
    }
)
"""Device nodes that mean the same thing in a guest as on the host."""

_INTERVAL = 1.0
"""Seconds between two looks at the sizes."""


@dataclass(frozen=True)
class HostDevice:
    """Where a device that is asked for really is, whether it is only read, and its node's mode and owner."""

    path: str
    read_only: bool
    mode: int
    uid: int
    gid: int

    def shown(self, asked: Device) -> wire.GuestDevice:
        """The node that the container gets; see :class:`~orlop.sandbox.spec.Device`."""
        return wire.GuestDevice(
            path=asked.container_path,
            disk=disk_id(asked),
            access=asked.permissions,
            mode=self.mode if asked.mode is None else asked.mode,
            uid=self.uid if asked.uid is None else asked.uid,
            gid=self.gid if asked.gid is None else asked.gid,
        )


def asked_of(spec: ContainerSpec) -> dict[str, Device]:
    """The devices that are disks, by the disk's id: all but those that every guest has."""
    return {disk_id(device): device for device in spec.devices if device.host_path not in GUEST_DEVICES}


def disk_id(device: Device) -> str:
    """The disk's name for a block device of the host: one for those who write, and one for those who do not.

    Who only reads is to get no more than that from the hypervisor either."""
    digest = hashlib.sha256(device.host_path.encode()).hexdigest()
    return f"dev-{'w' if 'w' in device.permissions else 'r'}-{digest[:20]}"


def check(container: str, device: Device, features: Collection[str]) -> None:
    """Raise for a device that a VM cannot have; ``features`` are those of the guest's agent. Blocks.

    NotFound for one that is not there, FailedPrecondition for one that is only the host's, InvalidArgument.
    """
    if device.host_path in GUEST_DEVICES:
        if not (device.mode is device.uid is device.gid is None):
            raise OutsideVm(
                f"{container} asks for {device.container_path} with a mode or owner of its own, but a VM has "
                "the devices of its guest as they are"
            )
        return
    mode = _status(container, device).st_mode
    if stat.S_ISREG(mode):
        raise InvalidArgument(f"{container} asks for the device {device.host_path}, which is a regular file")
    if not stat.S_ISBLK(mode):
        raise OutsideVm(f"{container} asks for the host's device {device.host_path}, which is not in the VM")
    if not device.permissions or not set(device.permissions) <= set("rwm"):
        raise InvalidArgument(
            f"{container}: the permissions {device.permissions[:10]!r} of the device {device.host_path} are "
            "not of rwm"
        )
    if BLOCKS not in features:
        raise FailedPrecondition(
            f"{container} asks for the block device {device.host_path}, but its pod's VM is of a release "
            "that cannot have one; make the pod anew"
        )


def find(container: str, device: Device) -> HostDevice:
    """What a device that was checked is now. Blocks. Raises NotFound, FailedPrecondition."""
    status = _status(container, device)
    path = os.path.realpath(device.host_path)
    try:
        found = blockdevices.look(path)
    except OSError as error:
        raise FailedPrecondition(
            f"{container}: the device {device.host_path} cannot be opened: {error.strerror}"
        ) from error
    if found is None:
        raise FailedPrecondition(f"{container}: {device.host_path} is not a block device any more")
    return HostDevice(
        path=path,
        # As on the host, where opening it to write is refused then, and nothing before that.
        read_only=found.read_only or "w" not in device.permissions,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
    )


Grown = Callable[[int], Awaitable[object]]


class Sizes:
    """Has the guest see the size that each of a VM's block devices has by now."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._followed: dict[str, tuple[tuple[int, int], int]] = {}
        self._then: dict[str, Grown] = {}
        self._any = asyncio.Event()
        self._tasks = Tasks()

    def follow(self, disk: str, path: str, then: Grown | None = None) -> None:
        """``disk`` is the device at ``path``, and the guest may have it in an older size; ``then`` hears of
        each size that it gets to have. Idempotent."""
        try:
            status = Path(path).stat()
        except OSError as error:
            log.warning("the size of the device %s is not followed: %s", path, error.strerror)
            return
        if disk in self._followed or self._tasks.closed:
            return
        self._followed[disk] = ((os.major(status.st_rdev), os.minor(status.st_rdev)), 0)
        if then is not None:
            self._then[disk] = then
        self._any.set()
        if not len(self._tasks):
            self._tasks.spawn(self._watch(), "the sizes of block devices")

    def forget(self, disk: str) -> None:
        """The disk is about to be detached. Idempotent."""
        self._followed.pop(disk, None)
        self._then.pop(disk, None)
        if not self._followed:
            self._any.clear()

    async def close(self) -> None:
        """Follow nothing any more. Idempotent."""
        self._followed.clear()
        await self._tasks.close()

    async def _watch(self) -> None:
        while await self._any.wait():
            for disk, (number, known) in list(self._followed.items()):
                try:
                    size = await threads.call(blockdevices.size_of, number)
                    if size not in (0, known) and disk in self._followed:
                        await self._machine.resize_disk(disk, size)
                        if disk in self._then:
                            await self._then[disk](size)
                        self._followed[disk] = (number, size)
                except NotFound:
                    self.forget(disk)
                except (Internal, FailedPrecondition) as error:
                    # They will not, and would not a second later: the machine may only read this one, say.
                    log.info("the size of the device %d:%d: %s", *number, error)
                    self._followed[disk] = (number, size)
                except (OSError, OrlopError) as error:
                    # It has gone from the host, or its VM has ended: others say so.
                    log.debug("the size of the device %d:%d: %s", *number, error)
            await asyncio.sleep(_INTERVAL)


def _status(container: str, device: Device) -> os.stat_result:
    try:
        return Path(device.host_path).stat()
    except OSError as error:
        raise NotFound(
            f"{container} asks for the device {device.host_path}, but on the host: {error.strerror}"
        ) from error
