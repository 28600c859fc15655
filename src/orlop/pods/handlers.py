"""Which handler a pod gets.

A RuntimeClass names ``vm`` or ``process``. A pod that names none gets the node's default. With
the default ``auto`` that is a VM, unless the pod asks for a namespace of the host or for
privileges on it, which no VM can give. A pod is never run by another handler than the one it
named, so it is never isolated less than it asked for; it is refused with the reason instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.host.tasks import Undo, together
from orlop.pods.records import Handler
from orlop.sandbox.base import SandboxDriver
from orlop.sandbox.spec import NamespaceMode, PodSpec

VM = "vm"
PROCESS = "process"
AUTO = "auto"


class Choice(NamedTuple):
    """A handler, and why it was taken."""

    handler: str
    reason: str


def choose(spec: PodSpec, default: str) -> Choice:
    """The handler for ``spec``, whose ``handler`` is what the caller named or ""."""
    if spec.handler:
        return Choice(spec.handler, "named by the pod's RuntimeClass")
    if default != AUTO:
        return Choice(default, "default of this node")
    if wish := _wish_for_the_host(spec):
        return Choice(PROCESS, f"chosen because the pod asks for {wish}, which a VM cannot give")
    return Choice(VM, "chosen because nothing the pod asks for needs the host")


def _wish_for_the_host(spec: PodSpec) -> str:
    namespaces = spec.namespaces
    for what, mode in (
        ("network", namespaces.network),
        ("PID", namespaces.pid),
        ("IPC", namespaces.ipc),
    ):
        if mode is NamespaceMode.NODE:
            return f"the host's {what} namespace"
    return "privileges on the host" if spec.privileged else ""


class Handlers:
    """The drivers of this node. One that could not be set up is kept as the reason why.

    ``names`` are further names of handlers, with the handler that each means.
    """

    def __init__(
        self,
        drivers: Mapping[str, SandboxDriver],
        default: str,
        absent: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._drivers = dict(drivers)
        self._names = dict(names or {})
        self._absent = dict(absent or {})
        self._default = default

    @property
    def drivers(self) -> list[SandboxDriver]:
        """The drivers that were set up."""
        return list(self._drivers.values())

    def choose(self, spec: PodSpec) -> Choice:
        """The handler for ``spec``. Raises InvalidArgument for a name that does not exist."""
        choice = choose(spec, self._default)
        if choice.handler in self._names:
            choice = choice._replace(handler=self._names[choice.handler])
        if choice.handler not in self._drivers and choice.handler not in self._absent:
            known = ", ".join(sorted({*self._drivers, *self._absent, *self._names}))
            raise InvalidArgument(
                f"pod {spec.namespace}/{spec.name}: runtime handler {choice.handler!r} does not exist; "
                f"there are {known}"
            )
        return choice

    def driver(self, name: str) -> SandboxDriver:
        """The driver of a handler. Raises FailedPrecondition, with the reason, when it is absent."""
        driver = self._drivers.get(name)
        if driver is None:
            reason = self._absent.get(name, "it does not exist")
            raise FailedPrecondition(f"runtime handler {name} cannot be used: {reason}")
        return driver

    async def open(self) -> dict[str, str]:
        """Open every driver; one that fails becomes absent. Returns the absent ones with the reason."""
        names = list(self._drivers)
        results = await asyncio.gather(
            *(self._drivers[name].open() for name in names), return_exceptions=True
        )
        for name, result in zip(names, results, strict=True):
            if isinstance(result, Exception):
                self._absent[name] = str(result) or type(result).__name__
                del self._drivers[name]
            elif isinstance(result, BaseException):
                raise result
        return dict(self._absent)

    async def close(self) -> None:
        """Close every driver; running pods keep running. Raises NotUndone."""
        undo = Undo("the handlers")
        await together(
            *(undo.step(f"handler {name}", driver.close()) for name, driver in self._drivers.items())
        )
        undo.finish()

    async def all(self) -> list[Handler]:
        """Every handler, under each of its names, with what it can do and why it cannot be used now."""
        result = [Handler(name=name, reason=reason) for name, reason in self._absent.items()]
        for name, driver in self._drivers.items():
            features = driver.features
            result.append(
                Handler(
                    name=name,
                    reason=await driver.ready(),
                    recursive_read_only_mounts=features.recursive_read_only_mounts,
                    user_namespaces=features.user_namespaces,
                    user_namespaces_host_network=features.user_namespaces_host_network,
                )
            )
        further = [
            msgspec.structs.replace(handler, name=name)
            for name, meant in self._names.items()
            for handler in result
            if handler.name == meant
        ]
        return sorted(result + further, key=lambda handler: handler.name)

    async def default_reason(self) -> str:
        """Why a pod that names no handler could not be run now, or ""."""
        name = VM if self._default == AUTO else self._default
        if name not in self._drivers:
            return f"runtime handler {name}: {self._absent.get(name, 'it does not exist')}"
        reason = await self._drivers[name].ready()
        return f"runtime handler {name}: {reason}" if reason else ""
