"""What no handler can serve is refused with the reason."""

from __future__ import annotations

import msgspec
import pytest

from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError
from orlop.sandbox.rules import check_container, check_pod
from orlop.sandbox.spec import (
    ContainerSpec,
    IdMapping,
    Mount,
    NamespaceMode,
    Namespaces,
    PodSpec,
    PortMapping,
    Rlimit,
    Root,
    Sink,
    Tmpfs,
)

POD = PodSpec(id="p", name="p", namespace="n", uid="u")
CONTAINER = ContainerSpec(id="c", pod_id="p", name="c", root=Root(layers=("/l",)))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"netns": "x"}, InvalidArgument, "not absolute"),
        ({"namespaces": Namespaces(network=NamespaceMode.NODE)}, InvalidArgument, "host's network"),
        ({"namespaces": Namespaces(user=NamespaceMode.POD)}, FailedPrecondition, "user namespace"),
        (
            {"port_mappings": (PortMapping(protocol="TCP", container_port=1, host_port=2),)},
            FailedPrecondition,
            "maps its ports",
        ),
    ],
)
def test_pods(changes: dict[str, object], error: type[OrlopError], words: str) -> None:
    check_pod(POD)
    check_pod(msgspec.structs.replace(POD, netns="/run/netns/x"))
    with pytest.raises(error, match=words):
        check_pod(msgspec.structs.replace(POD, **{"netns": "/run/netns/x", **changes}))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"root": Root()}, InvalidArgument, "no layers"),
        ({"root": Root(layers=("/l",), directory="/d")}, InvalidArgument, "not both"),
        ({"root": Root(directory="d")}, InvalidArgument, "not absolute"),
        ({"root": Root(directory="//")}, InvalidArgument, "own root"),
        ({"root": Root(directory="/x/..")}, InvalidArgument, "own root"),
        (
            {"root": Root(directory="/d"), "namespaces": Namespaces(user=NamespaceMode.POD)},
            FailedPrecondition,
            "user namespace",
        ),
        ({"sink": Sink(log="/l", stderr="/e")}, InvalidArgument, "not to both"),
        ({"sink": Sink(log="l")}, InvalidArgument, "not absolute"),
        ({"sink": Sink(stderr="/e"), "tty": True}, InvalidArgument, "terminal"),
        ({"rlimits": (Rlimit(name="nofile", soft=1, hard=1),)}, InvalidArgument, "RLIMIT_nofile"),
        ({"rlimits": (Rlimit(name="NOFILE", soft=-2, hard=1),)}, InvalidArgument, "out of range"),
        ({"rlimits": (Rlimit(name="NOFILE", soft=-1, hard=1),)}, InvalidArgument, "above the hard"),
        (
            {"mounts": (Mount(container_path="/m", tmpfs=Tmpfs(), host_path="/h"),)},
            InvalidArgument,
            "another source",
        ),
        ({"mounts": (Mount(container_path="/m", tmpfs=Tmpfs(mode=0o10000)),)}, InvalidArgument, "mode"),
        (
            {
                "mounts": (
                    Mount(
                        container_path="/m",
                        tmpfs=Tmpfs(),
                        uid_mappings=(IdMapping(container_id=0, host_id=1, length=1),),
                    ),
                )
            },
            InvalidArgument,
            "mapped",
        ),
    ],
)
def test_containers(changes: dict[str, object], error: type[OrlopError], words: str) -> None:
    check_container(CONTAINER)
    with pytest.raises(error, match=words):
        check_container(msgspec.structs.replace(CONTAINER, **changes))


def test_infinity_is_above_all() -> None:
    limits = (Rlimit(name="CORE", soft=-1, hard=-1), Rlimit(name="NOFILE", soft=9, hard=-1))
    check_container(msgspec.structs.replace(CONTAINER, rlimits=limits))
