"""Defaults, capabilities, signals and CDI devices of containers."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, OrlopError
from orlop.pods import capabilities, cdi, limits, resolve, socketplaces
from orlop.pods.requests import ContainerRequest, MountRequest, SecurityRequest
from orlop.sandbox.spec import (
    ContainerSpec,
    IdMapping,
    NamespaceMode,
    Namespaces,
    PodSpec,
    Rlimit,
    Seccomp,
    SeccompMode,
)
from tests.unit.pods_double import DoubleConfig, DoubleImage


def request(**changes: object) -> ContainerRequest:
    return ContainerRequest(**({"pod_id": "p", "name": "c", "image": "i"} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "args", "expected"),
    [
        (("e",), ("c",), (), (), ("e", "c")),
        (("e",), ("c",), (), ("a",), ("e", "a")),
        (("e",), ("c",), ("x",), (), ("x",)),
        (("e",), ("c",), ("x",), ("a",), ("x", "a")),
        ((), ("c",), (), ("a",), ("a",)),
    ],
)
def test_command_line(
    entrypoint: tuple[str, ...],
    cmd: tuple[str, ...],
    command: tuple[str, ...],
    args: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    config = DoubleConfig(entrypoint=entrypoint, cmd=cmd)
    assert resolve.command_line(request(command=command, args=args), config) == expected


@pytest.mark.parametrize(
    ("asked", "repository"),
    [
        (("z.example/app:1", "sha256:" + "1" * 64), "z.example/app"),
        (("", "z.example/app"), "z.example/app"),
        (("z.example/app@sha256:" + "4" * 64,), "z.example/app"),
        (("", "sha256:" + "1" * 64), "a.example/app"),
        (("nonsense//",), "a.example/app"),
    ],
)
def test_an_image_is_named_by_the_repository_that_was_asked_for(
    asked: tuple[str, ...], repository: str
) -> None:
    digests = (f"a.example/app@sha256:{'2' * 64}", f"z.example/app@sha256:{'3' * 64}")
    image = DoubleImage(repo_digests=(*digests, f"z.example/app@sha256:{'4' * 64}"))
    found = resolve.image_reference(image, *asked)
    assert found.startswith(f"{repository}@")
    if "4" * 64 in asked[0]:
        assert found == asked[0]


def test_a_host_path_that_is_missing_becomes_a_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real/below")
    wanted = MountRequest(container_path="/v", host_path=str(tmp_path / "link"))
    found = resolve.mount(wanted, lambda reference: None)
    assert found.host_path == str(tmp_path / "real/below")
    assert (tmp_path / "real/below").stat().st_mode & 0o777 == 0o755


def test_no_command_at_all() -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        resolve.command_line(request(), DoubleConfig(cmd=()))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("SIGRTMIN+3", 37),
        ("SIGRTMAX-1", 63),
        ("RTMIN", 34),
        ("SIGPOLL", 29),
    ],
)
def test_signals(name: str, number: int) -> None:
    assert resolve.signal_number(name) == number
    assert resolve.signal_number(resolve.signal_name(number)) == number


@given(st.text(max_size=20))
def test_any_text_is_a_signal_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert 1 <= resolve.signal_number(text) <= 64


def test_every_signal_has_a_name() -> None:
    for number in range(1, 65):
        assert resolve.signal_name(number).startswith("SIG")
    assert resolve.signal_name(signal.SIGTERM) == "SIGTERM"


def test_capabilities() -> None:
    default = capabilities.effective((), (), privileged=False)
    assert set(default) == capabilities.DEFAULT and len(capabilities.ALL) == 41
    assert capabilities.effective((), (), privileged=True) == capabilities.ALL
    assert capabilities.effective(("CAP_net_admin",), ("ALL",), privileged=False) == ("NET_ADMIN",)
    assert "CHOWN" not in capabilities.effective(("ALL",), ("CHOWN",), privileged=False)
    assert len(capabilities.effective(("ALL",), ("CHOWN",), privileged=False)) == 40
    assert "SYS_ADMIN" not in capabilities.effective((), ("ALL",), privileged=False)
    with pytest.raises(InvalidArgument, match="NONSENSE"):
        capabilities.effective(("NONSENSE",), (), privileged=False)


def test_security() -> None:
    plain = resolve.security(SecurityRequest(), DoubleConfig(user="app:staff"))
    assert (plain.user, plain.group) == ("app", "staff")
    assert plain.masked_paths == resolve.MASKED_PATHS
    assert plain.read_only_paths == resolve.READ_ONLY_PATHS
    assert resolve.known_user(plain) is None
    own = resolve.security(SecurityRequest(), DoubleConfig(), Namespaces(user=NamespaceMode.POD))
    assert (own.masked_paths, own.read_only_paths) == ((), ())
    named = resolve.security(SecurityRequest(user_id=7, masked_paths=()), DoubleConfig(user="app:staff"))
    assert (named.user, named.group, named.masked_paths) == ("7", "", ())
    profile = Seccomp(mode=SeccompMode.LOCALHOST, path="/p")
    privileged = resolve.security(
        SecurityRequest(privileged=True, apparmor="x", seccomp=profile), DoubleConfig()
    )
    assert privileged.seccomp == Seccomp()
    assert (privileged.masked_paths, privileged.read_only_paths, privileged.apparmor) == ((), (), "")
    with pytest.raises(InvalidArgument, match="ambient"):
        resolve.security(SecurityRequest(ambient_capabilities=("SYS_ADMIN",)), DoubleConfig())


def test_some_namespaces_are_always_the_pods() -> None:
    host = Namespaces(network=NamespaceMode.NODE, ipc=NamespaceMode.NODE)
    own = Namespaces()
    assert resolve.shared_namespaces(own, host) == msgspec.structs.replace(host, pid=own.pid)
    assert resolve.shared_namespaces(host, own) == host
    user = Namespaces(user=NamespaceMode.POD, uid_mappings=(IdMapping(container_id=0, host_id=9, length=1),))
    shared = resolve.shared_namespaces(own, user)
    assert (shared.user, shared.uid_mappings) == (user.user, user.uid_mappings)


SPECIFICATION = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.example/device",
    "containerEdits": {"env": ["COMMON=1"]},
    "devices": [
        {
            "name": "one",
            "containerEdits": {
                "env": ["ONE=x=y"],
                "deviceNodes": [{"path": "/dev/one", "hostPath": "/dev/null"}, {"path": "/dev/two"}],
                "mounts": [{"hostPath": "/", "containerPath": "/host", "options": ["ro", "bind"]}],
                "additionalGids": [5, 0],
            },
        },
        {"name": "two", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "/bin/x"}]}},
    ],
}

SPEC = ContainerSpec(id="c", pod_id="p", name="main", env=(("ONE", b"old"),))


def test_cdi(tmp_path: Path) -> None:
    (tmp_path / "vendor.json").write_text(json.dumps(SPECIFICATION))
    spec = cdi.apply(SPEC, ["vendor.example/device=one"], [tmp_path, tmp_path / "missing"])
    assert dict(spec.env) == {"ONE": b"x=y", "COMMON": b"1"}
    assert [(item.host_path, item.container_path) for item in spec.devices] == [
        ("/dev/null", "/dev/one"),
        ("/dev/two", "/dev/two"),
    ]
    assert (spec.mounts[0].container_path, spec.mounts[0].read_only) == ("/host", True)
    assert spec.security.supplemental_groups == (5,)
    with pytest.raises(FailedPrecondition, match="hooks"):
        cdi.apply(SPEC, ["vendor.example/device=two"], [tmp_path])
    with pytest.raises(NotFound, match="device=three"):
        cdi.apply(SPEC, ["vendor.example/device=three"], [tmp_path])


def test_cdi_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "v.yaml").write_text("cdiVersion: '0.6.0'\nkind: v.example/d\ndevices: [{name: a}]\n")
    assert cdi.apply(SPEC, ["v.example/d=a"], [tmp_path]) == SPEC


def test_which_cdi_devices() -> None:
    asked = request(
        cdi_devices=("a.b/c=d",), annotations={"cdi.k8s.io/x": "a.b/c=d, e.f/g=h", "other": "nonsense"}
    )
    assert cdi.requested(asked) == ("a.b/c=d", "e.f/g=h")
    with pytest.raises(InvalidArgument):
        cdi.requested(request(cdi_devices=("../x",)))


@given(st.binary(max_size=300), st.sampled_from(["x.json", "x.yaml"]))
def test_any_bytes_are_a_cdi_specification_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    with contextlib.suppress(OrlopError):
        cdi._read(path)


NOFILE = Rlimit(name="NOFILE", soft=1000, hard=2000)


def _limited(handler: str, *rlimits: Rlimit, **annotations: str) -> tuple[Rlimit, ...]:
    keys = {"pod": limits.POD, "c": f"{limits.CONTAINER}c", "other": f"{limits.CONTAINER}other"}
    said = {keys[name]: text for name, text in annotations.items()}
    pod = PodSpec(id="p", name="p", namespace="n", uid="u", handler=handler, annotations=said)
    asked = request(command=("x",), image="", directory="/root", rlimits=rlimits)
    return resolve.container(asked, "c" * 64, pod, None, lambda _: None).rlimits


def test_a_pod_wishes_for_limits_by_annotation() -> None:
    assert _limited("vm") == ()
    assert _limited("vm", pod="NOFILE=1000:2000", other="CORE=0") == (NOFILE,)
    infinite = Rlimit(name="MEMLOCK", soft=-1, hard=-1)
    assert _limited("vm", pod="NOFILE=1, MEMLOCK=infinity", c="RLIMIT_NOFILE = 1000:2000") == (
        NOFILE,
        infinite,
    )
    assert _limited("vm", c="NOFILE=infinity")[0].hard == 1073741816
    # Who asks by a field of the request knows better than an annotation.
    assert _limited("vm", NOFILE, pod="NOFILE=7") == (NOFILE,)
    assert _limited("process", pod="NOFILE=1000:2000,CORE=0") == (NOFILE, Rlimit(name="CORE", soft=0, hard=0))


def _for_sockets(tmp_path: Path, of_pod: str = "", of_container: str | None = None) -> list[str]:
    key = socketplaces.ANNOTATION
    pod = PodSpec(id="p", name="p", namespace="n", uid="u", annotations={key: of_pod})
    asked = request(
        command=("x",),
        image="",
        directory="/root",
        mounts=tuple(
            MountRequest(container_path=path, host_path=str(tmp_path)) for path in ("/run/app/", "/b")
        ),
        annotations={} if of_container is None else {key: of_container},
    )
    found = resolve.container(asked, "c" * 64, pod, None, lambda _: None).mounts
    return [one.container_path for one in found if one.sockets]


def test_volumes_are_for_sockets_by_annotation(tmp_path: Path) -> None:
    assert _for_sockets(tmp_path) == []
    assert _for_sockets(tmp_path, "/run/app, /b/./, /not/there") == ["/run/app/", "/b"]
    assert _for_sockets(tmp_path, "/run/app", "/b") == ["/b"]
    assert _for_sockets(tmp_path, "/run/app", "") == []
    for wrong in ("run/app", "/a,b", ",".join(["/a"] * 65)):
        with pytest.raises(InvalidArgument, match=r"volumes\.orlop\.io/sockets"):
            _for_sockets(tmp_path, wrong)


@pytest.mark.parametrize(
    "text", ["NOFILE", "nofile=1", "NOFILE=-2", "NOTHING=1", "NOFILE=1:2:3", "CPU=1e3", "x" * 9999]
)
def test_a_wish_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"rlimits\.orlop\.io/pod"):
        _limited("vm", pod=text)


@pytest.mark.parametrize("text", ["NOFILE=2000000", "NOFILE=infinity", "RTPRIO=1", "MEMLOCK=infinity"])
def test_a_process_of_the_host_gets_no_more_than_the_others(text: str) -> None:
    assert _limited("vm", pod=text)
    with pytest.raises(FailedPrecondition, match="handler 'vm'"):
        _limited("process", pod=text)
