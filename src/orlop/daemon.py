"""``orlopd``: one process that serves CRI on a Unix socket.

Order of a start: configuration, lock, image store, journal, drivers, recovery of what an earlier
daemon left, then the servers. Order of a stop: no new calls, running calls end or are undone, the
rest lets go. Pods keep running through all of it, and through SIGKILL.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import orlop
from orlop import config as configuration
from orlop import tracing
from orlop.config import Config, VmConfig
from orlop.cri.server import CriServer
from orlop.cri.streaming.server import StreamingServer
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, OrlopError, PermissionDenied
from orlop.host import privacy
from orlop.images.store import ImageStore
from orlop.net.network import PodNetwork
from orlop.oci.door import Door
from orlop.pods.metrics import MetricsServer, RpcMetrics
from orlop.pods.service import PodService
from orlop.rpc.deferred import Deferred, Handler
from orlop.rpc.router import Router
from orlop.sandbox.base import SandboxDriver
from orlop.shim.door import ShimDoor
from orlop.volumes.mounted import MountedVolumes
from orlop.volumes.publisher import Publisher
from orlop.volumes.store import VolumeStore

if TYPE_CHECKING:
    from orlop.hypervisor.base import Backend

log = logging.getLogger("orlop.daemon")

HYPERVISORS = {"qemu": "orlop.hypervisor.qemu"}
"""By the name that ``vm.hypervisor`` has; the first is the usual one."""

_PRIVATE_ROOT = ("guest", "hypervisor", "images", "network", "vm-scratch", "volumes")
_PRIVATE_STATE = ("oci", "vm-pods", "vms")
"""Made before anybody else makes them with other modes."""

_PASSABLE = ("process",)
"""The one directory in which the root user of a user namespace must find its way; see ``sandbox.process``."""

EXIT_USAGE = 2
EXIT_FAILED = 1


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for ``record``."""
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class LineFormatter(logging.Formatter):
    """One line per message, whatever is in it: what a guest or an image says must not look like ours."""

    _CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))} | {
        ord("\n"): "\\n",
        ord("\t"): "\t",
    }

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class' name
        """The line for ``record``; a traceback, which is our own, follows it."""
        record.message = record.message.translate(self._CONTROLS)
        return super().formatMessage(record)


def set_up_logging(config: Config) -> None:
    """Log to stderr as configured."""
    handler = logging.StreamHandler(sys.stderr)
    if config.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    for noisy in ("asyncio", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def only_daemon(config: Config) -> Iterator[None]:
    """Hold the lock of the state directory. AlreadyExists when another daemon has it."""
    for directory, private in ((config.root_dir, _PRIVATE_ROOT), (config.state_dir, _PRIVATE_STATE)):
        try:
            privacy.close_top(directory, private=private, passable=_PASSABLE)
        except OSError as error:
            raise FailedPrecondition(f"directory {directory} cannot be made: {error.strerror}") from error
    path = config.state_dir / "orlopd.lock"
    path.touch(mode=0o600)
    with path.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(32).strip() or "unknown"
            raise AlreadyExists(
                f"another orlopd (pid {owner}) uses {config.state}; stop it, or configure other directories"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def notify(state: str) -> None:
    """Tell the service manager, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.sendto(state.encode(), f"\0{address[1:]}" if address[0] == "@" else address)
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", state, error)


def _drivers(
    config: Config, network: PodNetwork, stack: AsyncExitStack
) -> tuple[dict[str, SandboxDriver], dict[str, str]]:
    """The handlers there are, with what ``stack`` is to release; and those that lack a Python package, with
    the reason."""
    drivers: dict[str, SandboxDriver] = {}
    absent: dict[str, str] = {}
    for name, make in (("vm", _vm), ("process", _process)):
        try:
            drivers[name] = make(config, network, stack)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "orlop":
                raise
            absent[name] = f"the Python package {error.name} is missing; install it, then restart"
    return drivers, absent


def hypervisor(vm: VmConfig) -> Backend:
    """The back end that the configuration asks for. Raises InvalidArgument for a wrong name or key."""
    name = vm.hypervisor or next(iter(HYPERVISORS))
    if name not in HYPERVISORS:
        known = ", ".join(HYPERVISORS)
        raise InvalidArgument(f'vm.hypervisor is "{name}", and must be one of these: {known}')
    chosen: Backend = import_module(HYPERVISORS[name]).backend(vm)
    strangers = sorted(vm.others.keys() - HYPERVISORS.keys())
    if strangers:
        raise InvalidArgument(f"the configuration: there is no key vm.{strangers[0]}")
    return chosen


def _vm(config: Config, network: PodNetwork, stack: AsyncExitStack) -> SandboxDriver:
    from orlop.guestos.build import GuestInUse
    from orlop.hypervisor.base import GuestFiles, Hypervisor
    from orlop.sandbox.vm.driver import VmDriver

    backend = hypervisor(config.vm)
    in_use = GuestInUse(config.vm.guest, config.root_dir / "guest")
    stack.callback(in_use.close)

    async def source() -> tuple[Hypervisor, GuestFiles]:
        guest = await asyncio.to_thread(in_use.find)
        return backend.booting(guest, config.root_dir / "hypervisor"), guest

    return VmDriver(config, network, backend.machines, source)


def _process(config: Config, network: PodNetwork, _: AsyncExitStack) -> SandboxDriver:
    from orlop.sandbox.process.driver import ProcessDriver

    return ProcessDriver(config, network)


async def opened_volumes(config: Config) -> VolumeStore:
    """The named volumes, whoever serves them. Raises FailedPrecondition."""
    store = VolumeStore(config.root_dir / "volumes")
    await store.open()
    await Publisher(store).open()
    return store


def _csi(config: Config, volumes: VolumeStore, pods: PodService) -> Deferred:
    """CSI on the daemon's own socket, for the command line."""

    def make() -> Sequence[Handler]:
        from orlop.csi import names
        from orlop.csi.server import handlers

        return handlers(Router(), volumes, names.node_of(config.csi), pods.volume_usage)

    return Deferred("csi.v1", make)


def _native(pods: PodService, images: ImageStore) -> Deferred:
    """What CRI has no words for, for our own clients."""

    def make() -> Sequence[Handler]:
        from orlop.native.server import handlers

        return handlers(Router(), pods, images)

    return Deferred("orlop.v1", make)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[PodService]:
    """The whole daemon, serving; leaving the block stops it, and no pod."""
    async with AsyncExitStack() as stack:
        if config.metrics.otlp_endpoint:
            tracing.configure(config.metrics.otlp_endpoint)
            stack.push_async_callback(asyncio.to_thread, tracing.shutdown)
        images = ImageStore(config.root_dir / "images", config.images)
        await images.open()
        stack.push_async_callback(images.close)
        network = PodNetwork(config.network, config.root_dir / "network")
        volumes = await opened_volumes(config)
        mounted = MountedVolumes(Publisher(volumes), Path(config.socket))
        drivers, absent = _drivers(config, network, stack)
        pods = PodService(config, images, drivers, absent=absent, network=network.ready, volumes=mounted)
        stack.push_async_callback(pods.close)
        for name, reason in (await pods.open()).items():
            log.warning("runtime handler %s cannot be used: %s", name, reason)
        rpcs = RpcMetrics()
        metrics = MetricsServer(config.metrics, rpcs, pods.ledger, pods.gauges)
        await metrics.start()
        stack.push_async_callback(metrics.stop)
        if config.nri.enabled:
            # Imported here: a node without plug-ins need not have it in memory.
            from orlop.nri.server import NriServer

            nri = NriServer(config.nri, pods)
            stack.push_async_callback(nri.stop)
            await nri.start()
        door = Door(config.state_dir, pods)
        stack.push_async_callback(door.stop)
        await door.start()
        shims = ShimDoor(config.state_dir, pods)
        stack.push_async_callback(shims.stop)
        await shims.start()
        if config.csi.enabled:
            from orlop.csi.server import CsiServer

            driver = CsiServer(config.csi, volumes, pods.volume_usage)
            stack.push_async_callback(driver.stop)
            await driver.start()
        streaming = StreamingServer(config.streaming, pods)
        await streaming.start()
        stack.push_async_callback(streaming.stop)
        others = [_csi(config, volumes, pods), _native(pods, images)]
        server = CriServer(config, pods, images, streaming, metrics=rpcs, others=others)
        await server.start()
        stack.push_async_callback(server.stop)
        yield pods


async def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    begun = time.monotonic()
    async with running(config) as pods:
        # What was imported lives as long as the daemon; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        reason = await pods.runtime_reason() or await pods.network_reason()
        log.info(
            "orlopd %s serves CRI on %s after %.1f s%s",
            orlop.__version__,
            config.socket,
            time.monotonic() - begun,
            f"; not ready: {reason}" if reason else "",
        )
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        log.info("stopping; pods keep running")


def main(arguments: list[str] | None = None) -> int:
    """The command ``orlopd``. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="orlopd", description="Orlop's CRI daemon; runs in the foreground.")
    parser.add_argument(
        "--config", type=Path, help=f"configuration file (default {configuration.DEFAULT_PATH})"
    )
    parser.add_argument("--version", action="version", version=f"orlopd {orlop.__version__}")
    options = parser.parse_args(arguments)
    try:
        config = configuration.load(options.config)
    except OrlopError as error:
        sys.stderr.write(f"orlopd: {error}\n")
        return EXIT_USAGE
    set_up_logging(config)
    try:
        if os.geteuid() != 0:
            raise PermissionDenied("orlopd must run as root: it makes namespaces, mounts and VMs")
        with only_daemon(config):
            asyncio.run(serve(config))
    except OrlopError as error:
        log.critical("%s", error)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
