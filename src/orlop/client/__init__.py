"""A client of the daemon for Python programs; the command ``orlop`` is made of it.

Its public names are those of :mod:`orlop`. What fails raises :mod:`orlop.errors`.
"""

from orlop.client.container import Container, Process
from orlop.client.facts import (
    CommandFailed,
    ContainerFacts,
    ContainerUse,
    Event,
    ImageFacts,
    PodFacts,
    Result,
)
from orlop.client.forward import PortStream
from orlop.client.node import Node, connect
from orlop.client.pod import Pod

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
