"""``orlop csi``: the CSI driver without the rest of the daemon, for nodes that another runtime serves."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from orlop import config as configuration
from orlop import daemon
from orlop.cli.problems import CliError
from orlop.config import Config
from orlop.csi.server import CsiServer
from orlop.errors import OrlopError


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = CsiServer(config.csi, await daemon.opened_volumes(config))
    try:
        await server.start()
        daemon.notify("READY=1")
        await stop.wait()
        daemon.notify("STOPPING=1")
    finally:
        await server.stop()


def csi_command(path: Path | None) -> None:
    """Serve until SIGTERM or SIGINT. It and ``orlopd`` exclude each other."""
    if os.geteuid() != 0:
        raise CliError("the driver must run as root: it mounts volumes")
    try:
        config = configuration.load(path)
        daemon.set_up_logging(config)
        with daemon.only_daemon(config):
            asyncio.run(_serve(config))
    except OrlopError as error:
        raise CliError(str(error)) from error
