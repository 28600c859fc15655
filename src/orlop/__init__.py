"""Orlop: a container runtime for Kubernetes that runs every pod in its own virtual machine.

For Python programs this is the client of its daemon; docs/python.md shows what can be done with it.

    async with orlop.connect() as node:
        result = await node.run("docker.io/library/busybox", "uname", "-r")
"""

__version__ = "0.2.0.dev0"

__all__ = [
    "CommandFailed",
    "Container",
    "ContainerFacts",
    "ContainerUse",
    "Event",
    "FileChange",
    "ImageFacts",
    "Node",
    "Pod",
    "PodFacts",
    "PortStream",
    "Process",
    "Result",
    "connect",
]

# The name tells type checkers: importing typing would cost every guest a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from orlop.client.container import Container, Process
    from orlop.client.facts import (
        CommandFailed,
        ContainerFacts,
        ContainerUse,
        Event,
        FileChange,
        ImageFacts,
        PodFacts,
        Result,
    )
    from orlop.client.forward import PortStream
    from orlop.client.node import Node, connect
    from orlop.client.pod import Pod


def __getattr__(name: str) -> object:
    # Imported when it is asked for: the daemon and the guest have no use for a client.
    if name not in __all__:
        raise AttributeError(f"module orlop has no attribute {name!r}")
    from importlib import import_module

    rooms = (
        import_module(f"orlop.client.{room}") for room in ("container", "facts", "forward", "node", "pod")
    )
    return next(vars(room)[name] for room in rooms if name in vars(room))
