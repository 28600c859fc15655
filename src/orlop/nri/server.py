"""Plug-ins come here: those that are started, and those that connect."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

from orlop.config import NriConfig
from orlop.errors import FailedPrecondition, OrlopError
from orlop.host import process, threads
from orlop.host.tasks import Tasks, failures_of
from orlop.nri.adaptation import Adaptation
from orlop.nri.plugin import Plugin, check_name
from orlop.pods.service import PodService
from orlop.ttrpc.link import Listener, SocketLink

log = logging.getLogger(__name__)

MAX_PLUGINS = 32
MAX_SETTINGS = 1 << 20


class NriServer:
    """The plug-ins of a node, from :meth:`start` to :meth:`stop`."""

    def __init__(self, config: NriConfig, pods: PodService) -> None:
        self._config = config
        self._pods = pods
        self._tasks = Tasks()
        self.adaptation = Adaptation(pods)
        self._listener = Listener(Path(config.socket), self._connected, limit=MAX_PLUGINS)

    async def start(self) -> None:
        """Start the plug-ins that are installed and wait until each is ready or has failed; then listen.

        Raises FailedPrecondition when it cannot listen.
        """
        self._pods.observe(self.adaptation)
        found = await threads.call(installed, Path(self._config.plugin_dir))
        ready = [asyncio.Event() for _ in found]
        for path, event in zip(found, ready, strict=True):
            self._tasks.spawn(self._launched(path, event), f"plug-in {path.name}")
        await failures_of(*(event.wait() for event in ready))
        await self._listener.start()

    async def stop(self) -> None:
        """Let all of them go, and end those that were started."""
        await self._listener.stop()
        await self._tasks.close()

    async def _connected(self, link: SocketLink) -> None:
        plugin = Plugin(link, self._config, self.adaptation.update_containers)
        await self._served(plugin, asyncio.Event())

    async def _served(self, plugin: Plugin, ready: asyncio.Event) -> None:
        """A plug-in from its registration to its end."""
        try:
            await plugin.start()
            await self.adaptation.admit(plugin)
            ready.set()
            await plugin.closed.wait()
        except OrlopError as error:
            log.warning("plug-in %s: %s", plugin.name, error)
        finally:
            ready.set()
            self.adaptation.forget(plugin)
            await plugin.close()

    async def _launched(self, path: Path, ready: asyncio.Event) -> None:
        """One that is started here, to its end; nobody starts it again."""
        try:
            index, _, base = path.name.partition("-")
            settings = await threads.call(settings_of, Path(self._config.config_dir), index, base)
            here, there = socket.socketpair()
            with there:
                try:
                    child = await process.spawn(
                        [path],
                        env={
                            "NRI_PLUGIN_NAME": base,
                            "NRI_PLUGIN_IDX": index,
                            "NRI_PLUGIN_SOCKET": str(there.fileno()),
                        },
                        pass_fds=(there.fileno(),),
                    )
                except BaseException:
                    here.close()
                    raise
            try:
                link = SocketLink(*await asyncio.open_unix_connection(sock=here))
                update = self.adaptation.update_containers
                plugin = Plugin(link, self._config, update, index=index, base=base, settings=settings)
                await self._served(plugin, ready)
            finally:
                await process.reap(child)
        finally:
            ready.set()


def installed(directory: Path) -> list[Path]:
    """The programs in ``directory`` that are named as plug-ins are, in their order. Blocks on the disk.

    They run as root, so that one which another user could have put there or changed is left out.
    """
    found = []
    try:
        entries = sorted(directory.iterdir())
        _check_owner(directory)
    except FileNotFoundError:
        return []
    except (OSError, OrlopError) as error:
        log.warning("no plug-in of %s is started: %s", directory, error)
        return []
    for path in entries:
        try:
            if not path.is_file() or not os.access(path, os.X_OK):
                continue
            index, _, base = path.name.partition("-")
            check_name(index, base)
            _check_owner(path)
        except (OSError, OrlopError) as error:
            log.warning("plug-in %s is not started: %s", path, error)
            continue
        found.append(path)
    return found[:MAX_PLUGINS]


def _check_owner(path: Path) -> None:
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise FailedPrecondition(f"{path} can be changed by others than root")


def settings_of(directory: Path, index: str, base: str) -> str:
    """What ``INDEX-BASE.conf`` or ``BASE.conf`` says, "" without such a file. Blocks on the disk.

    Raises FailedPrecondition for one that cannot be read.
    """
    for path in (directory / f"{index}-{base}.conf", directory / f"{base}.conf"):
        try:
            with path.open("rb") as file:
                data = file.read(MAX_SETTINGS + 1)
            if len(data) > MAX_SETTINGS:
                raise FailedPrecondition(f"{path} is larger than {MAX_SETTINGS} bytes")
            return data.decode()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition(f"{path} cannot be read: {error}") from error
    return ""
