"""What plug-ins want, applied to a specification; who is in conflict with whom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import FailedPrecondition, OrlopError
from orlop.nri import describe
from orlop.nri.adjust import Adjuster
from orlop.nri.api import nri_v1alpha1_pb2 as pb
from orlop.pods.records import ContainerPhase, ContainerRecord
from orlop.sandbox.spec import (
    ContainerSpec,
    Mount,
    Namespace,
    Resources,
    Rlimit,
    SeccompMode,
    Tmpfs,
)


def spec(**more: Any) -> ContainerSpec:
    fields = {"args": ("sleep",), "env": (("OWN", b"\xff"),), "annotations": {"own": "1"}}
    return ContainerSpec(id="c" * 64, pod_id="p", name="main", **(fields | more))


def asked(**fields: Any) -> pb.ContainerAdjustment:
    return json_format.ParseDict(fields, pb.ContainerAdjustment())


def adjusted(before: ContainerSpec, **fields: Any) -> ContainerSpec:
    adjuster = Adjuster(before)
    adjuster.apply(asked(**fields), "10-it")
    return adjuster.spec


def test_a_plugin_that_wants_nothing_changes_nothing() -> None:
    before = spec(rlimits=(Rlimit(name="CORE", soft=0, hard=-1),), mounts=(Mount(container_path="/x"),))
    assert adjusted(before) == before


def test_variables_annotations_and_the_command() -> None:
    found = adjusted(
        spec(),
        env=[{"key": "NEW", "value": "1"}],
        annotations={"-own": "", "new": "2"},
        args=["a", "b"],
    )
    assert found.env == (("OWN", b"\xff"), ("NEW", b"1"))
    assert found.annotations == {"new": "2"}
    assert found.args == ("a", "b")
    assert adjusted(spec(), env=[{"key": "-OWN"}]).env == ()
    assert adjusted(spec(), env=[{"key": "OWN", "value": "x"}]).env == (("OWN", b"x"),)


def test_mounts(tmp_path: Path) -> None:
    before = spec(mounts=(Mount(container_path="/a", host_path="/x"), Mount(container_path="/b")))
    found = adjusted(
        before,
        mounts=[
            {"destination": "-/b"},
            {
                "destination": "/a",
                "source": str(tmp_path),
                "type": "bind",
                "options": ["ro", "rslave", "nodev"],
            },
            {"destination": "/m", "type": "tmpfs", "options": ["size=8m", "mode=700"]},
        ],
    ).mounts
    assert [one.container_path for one in found] == ["/a", "/m"]
    assert (found[0].host_path, found[0].read_only, found[0].options) == (str(tmp_path), True, ("nodev",))
    assert found[0].propagation == "rslave"
    assert found[1].tmpfs == Tmpfs(size=8 << 20, mode=0o700)


def test_limits() -> None:
    before = spec(resources=Resources(cpu_shares=7, unified=(("memory.low", "1"),)))
    found = adjusted(
        before,
        rlimits=[{"type": "RLIMIT_NOFILE", "hard": str((1 << 64) - 1), "soft": "5"}],
        linux={
            "resources": {
                "memory": {"limit": {"value": "100"}},
                "cpu": {"quota": {"value": "-1"}, "cpus": "0-1"},
                "unified": {"memory.high": "5"},
                "hugepage_limits": [{"page_size": "2MB", "limit": "3"}],
                "pids": {"limit": "9"},
            },
            "oom_score_adj": {"value": "-5"},
        },
    )
    assert found.rlimits == (Rlimit(name="NOFILE", soft=5, hard=-1),)
    assert found.resources == Resources(
        cpu_shares=7, cpu_quota=-1, cpuset_cpus="0-1", memory_limit=100, oom_score_adj=-5, pids_limit=9,
        hugepage_limits=(("2MB", 3),), unified=(("memory.high", "5"), ("memory.low", "1")),
    )  # fmt: skip


def test_what_only_the_host_has() -> None:
    hook = {"path": "/bin/true", "args": ["true"], "timeout": {"value": "3"}}
    found = adjusted(
        spec(),
        hooks={"create_runtime": [hook], "poststop": [hook]},
        linux={
            "cgroups_path": "/x",
            "sysctl": {"net.a": "1"},
            "namespaces": [{"type": "network", "path": "/n"}, {"type": "-ipc"}],
            "seccomp_policy": {"default_action": "SCMP_ACT_ALLOW"},
        },
    )
    assert [(one.moment, one.timeout) for one in found.on_host.hooks] == [
        ("createRuntime", 3),
        ("poststop", 3),
    ]
    assert (found.on_host.cgroup, found.on_host.sysctls) == ("/x", {"net.a": "1"})
    assert found.on_host.namespaces == (
        Namespace(kind="network", path="/n"),
        Namespace(kind="ipc", of_host=True),
    )
    assert found.security.seccomp.mode is SeccompMode.GIVEN


def test_a_device_is_found_by_its_number() -> None:
    null = Path("/dev/null").stat()
    node = {"type": "c", "major": str(os.major(null.st_rdev)), "minor": str(os.minor(null.st_rdev))}
    (found,) = adjusted(spec(), linux={"devices": [{"path": "/dev/null", **node}]}).devices
    assert (found.host_path, found.container_path, found.mode) == ("/dev/null", "/dev/null", None)
    (other,) = adjusted(
        spec(), linux={"devices": [{"path": "/dev/null", **node, "file_mode": {"value": 0o600}}]}
    ).devices
    assert other.mode == 0o600
    (renamed,) = adjusted(spec(), linux={"devices": [{"path": "/dev/nothing", **node}]}).devices
    assert (renamed.host_path, renamed.container_path) == ("/dev/null", "/dev/nothing")
    with pytest.raises(FailedPrecondition, match=r"plug-in 10-it: this host has no node .* 251:9999"):
        adjusted(
            spec(), linux={"devices": [{"path": "/dev/q", "type": "c", "major": "251", "minor": "9999"}]}
        )


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"linux": {"io_priority": {"priority": 1}}}, "an I/O priority"),
        ({"linux": {"rdt": {"remove": True}}}, "Intel RDT"),
        ({"linux": {"resources": {"blockio_class": {"value": "x"}}}}, "blockio_class"),
        ({"linux": {"resources": {"memory": {"swappiness": {"value": "1"}}}}}, "memory.swappiness"),
        ({"linux": {"resources": {"memory": {"limit": {"value": "-2"}}}}}, "memory_limit"),
        ({"linux": {"resources": {"unified": {"../x": "1"}}}}, "cgroup file"),
        ({"linux": {"namespaces": [{"type": "moon"}]}}, "moon"),
        ({"linux": {"seccomp_policy": {"listener_path": "/x"}}}, "listener"),
        ({"linux": {"oom_score_adj": {"value": "5000"}}}, "OOM score"),
        ({"mounts": [{"destination": "x", "type": "bind", "source": "/"}]}, "absolute"),
        ({"mounts": [{"destination": "/x", "type": "bind", "source": "/no/such/place"}]}, "/no/such/place"),
        ({"mounts": [{"destination": "/x", "type": "proc", "source": "proc"}]}, "proc"),
        ({"mounts": [{"destination": "/x", "type": "bind", "source": "/", "options": ["what"]}]}, "what"),
        ({"hooks": {"poststop": [{"path": "x"}]}}, "hook"),
        ({"env": [{"key": "a=b", "value": ""}]}, "variable"),
        ({"args": [""]}, "program"),
    ],
)
def test_what_cannot_be_is_refused_in_the_name_of_the_plugin(fields: dict[str, Any], what: str) -> None:
    adjuster = Adjuster(spec())
    with pytest.raises(OrlopError, match=what) as refused:
        adjuster.apply(asked(**fields), "10-it")
    assert "10-it" in str(refused.value)
    assert adjuster.spec == spec()


@pytest.mark.parametrize(
    "fields",
    [
        {"env": [{"key": "X", "value": "1"}]},
        {"annotations": {"x": "1"}},
        {"args": ["a"]},
        {"mounts": [{"destination": "/x", "type": "tmpfs"}]},
        {"rlimits": [{"type": "RLIMIT_CORE", "hard": "1", "soft": "1"}]},
        {"linux": {"cgroups_path": "/x"}},
        {"linux": {"oom_score_adj": {"value": "1"}}},
        {"linux": {"resources": {"cpu": {"shares": {"value": "5"}}}}},
        {"linux": {"seccomp_policy": {"default_action": "SCMP_ACT_ALLOW"}}},
        {"CDI_devices": [{"name": "a.com/b=c"}]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_the_same_from_two_plugins_is_a_conflict_that_names_both(fields: dict[str, Any]) -> None:
    adjuster = Adjuster(spec())
    adjuster.apply(asked(**fields), "10-one")
    with pytest.raises(FailedPrecondition, match="the plug-ins 10-one and 20-other both set"):
        adjuster.apply(asked(**fields), "20-other")


def test_hooks_are_never_in_conflict() -> None:
    adjuster = Adjuster(spec())
    for name in ("10-one", "20-other"):
        adjuster.apply(asked(hooks={"poststart": [{"path": f"/{name}"}]}), name)
    assert [hook.path for hook in adjuster.spec.on_host.hooks] == ["/10-one", "/20-other"]


def test_what_was_taken_away_first_can_be_set_again() -> None:
    adjuster = Adjuster(spec())
    adjuster.apply(asked(env=[{"key": "X", "value": "1"}], args=["a"]), "10-one")
    adjuster.apply(asked(env=[{"key": "-X"}, {"key": "X", "value": "2"}], args=["", "b"]), "20-other")
    assert dict(adjuster.spec.env)["X"] == b"2"
    assert adjuster.spec.args == ("b",)
    owners = adjuster.claims.message().owners["c" * 64]
    assert owners.compound[pb.Env].owners["X"] == "20-other"
    assert owners.simple[pb.Args] == "20-other"


TEXT = st.text(max_size=6)
NUMBER = st.integers(-(1 << 63), (1 << 63) - 1)
ANY = st.builds(
    lambda env, annotations, mounts, devices, limits, memory, unified, score: pb.ContainerAdjustment(
        env=[pb.KeyValue(key=key, value=value) for key, value in env],
        annotations=annotations,
        mounts=[pb.Mount(destination=a, type=b, source=c, options=d) for a, b, c, d in mounts],
        rlimits=[pb.POSIXRlimit(type=kind, soft=abs(soft), hard=abs(hard)) for kind, soft, hard in limits],
        linux=pb.LinuxContainerAdjustment(
            devices=[pb.LinuxDevice(path=a, type=b, major=c, minor=d) for a, b, c, d in devices],
            resources=pb.LinuxResources(
                memory=pb.LinuxMemory(limit=pb.OptionalInt64(value=memory)), unified=unified
            ),
            oom_score_adj=pb.OptionalInt(value=score),
        ),
    ),
    st.lists(st.tuples(TEXT, TEXT), max_size=3),
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.lists(
        st.tuples(TEXT, st.sampled_from(["bind", "tmpfs", ""]), TEXT, st.lists(TEXT, max_size=2)), max_size=2
    ),
    st.lists(st.tuples(TEXT, st.sampled_from("bcup"), NUMBER, NUMBER), max_size=2),
    st.lists(st.tuples(TEXT, NUMBER, NUMBER), max_size=2),
    NUMBER,
    st.dictionaries(TEXT, TEXT, max_size=2),
    NUMBER,
)


@given(ANY)
def test_whatever_a_plugin_wants_is_done_or_refused(wanted: pb.ContainerAdjustment) -> None:
    adjuster = Adjuster(spec())
    try:
        adjuster.apply(wanted, "10-it")
    except OrlopError as error:
        assert "10-it" in str(error)
        assert adjuster.spec == spec()
    else:
        record = ContainerRecord(spec=adjuster.spec, phase=ContainerPhase.CREATING, created_at=1)
        assert describe.container(record).SerializeToString()
