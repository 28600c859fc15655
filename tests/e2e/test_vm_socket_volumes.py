"""Volumes that are there for sockets because their pod says so, and what directories of the host refuse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.errors import FailedPrecondition
from orlop.sandbox.spec import ContainerSpec, PodSpec, Propagation
from orlop.sandbox.vm.listeners import is_served
from orlop.sandbox.vm.sandbox import VmSandbox
from orlop.wire.messages import MAX_BOUND
from tests.e2e.test_vm_listeners import mode_of, talk
from tests.e2e.test_vm_sockets import called, caller, gone, mount, reached, serving, started
from tests.e2e.vm_environment import Environment, container_spec, environment, execute, pod_spec, said, until
from tests.patience import PATIENCE


@pytest.fixture
async def env() -> AsyncIterator[Environment]:
    async with environment(pool=1) as one:
        yield one


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir(mode=0o755)
    (path / "file").write_text("of the host")
    return path


async def server(sandbox: VmSandbox, pod: PodSpec, place: Path, name: str = "s.sock") -> ContainerSpec:
    """A container that serves a socket below ``/run/app``, a volume for sockets."""
    spec = container_spec(
        pod,
        *("/caller", "serve", f"/run/app/{name}", "640"),
        mounts=(mount("/caller", caller(), read_only=True), mount("/run/app", place, sockets=True)),
    )
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    return spec


async def answers(sandbox: VmSandbox, spec: ContainerSpec, path: str) -> None:
    """Wait until a server in the VM answers a container."""
    async with asyncio.timeout(60 * PATIENCE):
        while await called(sandbox, spec, path) != b"hello":  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_containers_and_the_host_meet_in_a_volume_for_sockets(env: Environment, place: Path) -> None:
    pod, path = pod_spec(), place / "s.sock"
    sandbox = await env.run(pod)
    main = await server(sandbox, pod, place)
    # The other containers of its pod have the same, whatever they say; who only reads has the host's.
    side = await started(sandbox, pod, mount("/shared", place))
    reader = await started(sandbox, pod, mount("/host", place, read_only=True))
    await answers(sandbox, side, "/shared/s.sock")
    await until(lambda: mode_of(path) == 0o640 and is_served(os.fspath(path)))
    assert await talk(path, b"from the host") == b"from the host"
    await answers(sandbox, reader, "/host/s.sock")
    assert await said(sandbox, reader, "cat /host/file") == "of the host"
    assert await said(sandbox, side, "ls /shared") == "s.sock"
    # A FIFO is the pod's own, as all is but sockets; a link to a socket is none.
    await said(sandbox, main, "mkfifo /run/app/fifo; ln -s s.sock /run/app/link.sock")
    await said(sandbox, main, "(echo through > /run/app/fifo) >/dev/null 2>&1 &")
    assert await said(sandbox, side, "cat /shared/fifo") == "through"
    # What the host serves there is there for all of them.
    async with serving(place / "host.sock"):
        await answers(sandbox, side, "/shared/host.sock")
    await gone(sandbox, side, "/shared/host.sock")
    # A later daemon goes on with it.
    await env.crash()
    assert not is_served(os.fspath(path))
    await env.again()
    sandbox = await env.recover(pod, main, side, reader)
    await until(lambda: is_served(os.fspath(path)))
    assert await talk(path, b"again") == b"again"
    await answers(sandbox, reader, "/host/s.sock")
    await said(sandbox, side, "rm /shared/s.sock")
    await until(lambda: not path.exists())
    await server(sandbox, pod, place, "second.sock")
    await until(lambda: is_served(os.fspath(place / "second.sock")))
    assert sorted(one.name for one in place.iterdir()) == ["file", "second.sock"]
    await env.driver.discard(pod.id)
    assert [one.name for one in place.iterdir()] == ["file"]


async def test_a_pod_has_so_many_sockets_on_the_host_and_makes_nothing_else_there(
    env: Environment, place: Path
) -> None:
    pod = pod_spec()
    sandbox = await env.run(pod)
    side = await started(sandbox, pod, mount("/sockets", place, sockets=True), mount("/host", place.parent))
    await said(sandbox, side, "mknod /sockets/null c 1 3; ln -s /etc /sockets/etc; echo x > /sockets/file")
    await said(sandbox, side, f"/caller listen /sockets {MAX_BOUND + 8} >/tmp/said 2>&1 &")
    await said(sandbox, side, "until grep -q listening /tmp/said; do sleep 0.1; done")
    sockets = lambda: [one for one in place.iterdir() if one.is_socket()]  # noqa: E731
    await until(lambda: len(sockets()) == MAX_BOUND)
    # The host's directory itself takes no device, and what it refuses leaves nothing behind.
    for wish in ("c 1 3", "b 7 0"):
        _, err, code = await execute(sandbox, side.id, "mknod", "/host/device", *wish.split())
        assert code != 0 and b"not permitted" in err, err
    assert [one.name for one in place.parent.iterdir()] == [place.name]
    assert len(sockets()) == MAX_BOUND and (place / "file").read_text() == "of the host"
    assert len(list(place.iterdir())) == MAX_BOUND + 1
    await env.driver.discard(pod.id)
    assert [one.name for one in place.iterdir()] == ["file"]


async def test_what_cannot_be_for_sockets_is_refused(env: Environment, place: Path) -> None:
    pod = pod_spec()
    sandbox = await env.run(pod)
    for wrong in (
        mount("/run/app", place / "file", sockets=True),
        mount("/run/app", place, sockets=True, propagation=Propagation.HOST_TO_CONTAINER),
    ):
        spec = container_spec(pod, "sleep", "1", mounts=(wrong,))
        with pytest.raises(FailedPrecondition, match="cannot be one for sockets"):
            await sandbox.create(spec)
    # Who may only read it gets the host's, and can have no socket there.
    fixed = await started(sandbox, pod, mount("/run/app", place, sockets=True, read_only=True))
    assert await said(sandbox, fixed, "cat /run/app/file") == "of the host"
    await env.driver.discard(pod.id)


async def test_what_a_hosts_directory_takes_is_the_containers_own(env: Environment, place: Path) -> None:
    """QEMU before 9.2.1 makes neither, and leaves nothing behind; later ones make both, for the container."""
    pod = pod_spec()
    sandbox = await env.run(pod)
    main = await started(sandbox, pod, mount("/shared", place))
    _, err, code = await execute(sandbox, main.id, "mkfifo", "/shared/fifo")
    if code:
        assert b"No such device or address" in err, err
        said_of_it = await execute(sandbox, main.id, "/caller", "serve", "/shared/s.sock", "600")
        assert said_of_it == (b"bind: No such device or address\n", b"", 1)
        # Whoever wanted them may take the names for something else.
        await said(sandbox, main, "test -e /shared/s.sock || echo of the container > /shared/fifo")
        assert sorted(one.name for one in place.iterdir()) == ["fifo", "file"]
        assert (place / "fifo").is_file()
    else:
        await said(sandbox, main, "/caller serve /shared/s.sock 600 >/tmp/said 2>&1 &")
        await answers(sandbox, main, "/shared/s.sock")
        # One of the host comes beside it, and with that the guest has heard of all that is not its own.
        async with serving(place / "host.sock") as of_host:
            await reached(sandbox, main, "/shared/host.sock", by=of_host)
            assert await called(sandbox, main, "/shared/s.sock") == b"hello"
        assert not is_served(os.fspath(place / "s.sock")), "it is in the guest's kernel alone"
        await said(sandbox, main, "(echo through > /shared/fifo) >/dev/null 2>&1 &")
        assert await said(sandbox, main, "cat /shared/fifo; rm /shared/s.sock /shared/fifo") == "through"
        await gone(sandbox, main, "/shared/s.sock")
        assert [one.name for one in place.iterdir()] == ["file"]
    await env.driver.discard(pod.id)
