"""Walking the paths a first container will take, so that clones find code and pages ready."""

from __future__ import annotations

from contextlib import suppress

from orlop.guest import setup, stats
from orlop.guest.cgroup import POD, Cgroup
from orlop.wire import messages
from orlop.wire.messages import Refused
from orlop.wire.values import Container, Disk, Mount


def up() -> None:
    """Import and run, without effect on the machine, what requests will need."""
    request = messages.Create(
        container=Container(
            id="warm",
            lower=(Disk(lun=0, partitions=1),),
            args=("true",),
            env=(("PATH", b"/bin"),),
            mounts=(Mount(target="/warm", kind="share"),),
        )
    )
    for one in (
        request,
        messages.Setup(hostname="warm"),
        messages.Start(id="warm"),
        messages.Delete(id="warm"),
    ):
        messages.unpack_request(messages.pack_request(one))
    stats.usage(POD)
    stats.interfaces()
    setup.memory()
    with suppress(Refused, OSError):
        Cgroup(POD.path).apply(request.container.resources)
