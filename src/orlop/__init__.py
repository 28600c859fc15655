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
    from orlop.client import (
        CommandFailed,
        Container,
        ContainerFacts,
        ContainerUse,
        Event,
        ImageFacts,
        Node,
        Pod,
        PodFacts,
        PortStream,
        Process,
        Result,
        connect,
    )


def __getattr__(name: str) -> object:
    # Imported when it is asked for: the daemon and the guest have no use for a client.
    if name not in __all__:
        raise AttributeError(f"module orlop has no attribute {name!r}")
    from orlop import client

    return getattr(client, name)
