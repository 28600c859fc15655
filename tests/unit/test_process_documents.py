"""What the handler ``process`` writes for its tools, without any of them."""

from __future__ import annotations

import itertools
import json
import os
import resource
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.config import Config, ProcessConfig
from orlop.errors import CannotRun, FailedPrecondition, InvalidArgument
from orlop.host import cgroups
from orlop.linux.users import Identity
from orlop.sandbox.process import (
    apparmor,
    checks,
    conmon,
    devices,
    identity,
    layout,
    oci,
    podns,
    runtime,
    selinux,
    volumes,
)
from orlop.sandbox.process.layout import ContainerProcesses, KnownProcess, Layout, PodState
from orlop.sandbox.process.runtime import Runtime, refusal
from orlop.sandbox.spec import (
    ContainerSpec,
    Device,
    Dns,
    IdMapping,
    Mount,
    NamespaceMode,
    Namespaces,
    PodSpec,
    Propagation,
    Resources,
    Rlimit,
    Root,
    Seccomp,
    SeccompMode,
    Security,
    Sink,
)

POD = PodSpec(id="p" * 64, name="web", namespace="default", uid="u", hostname="web")
SPEC = ContainerSpec(id="c" * 64, pod_id=POD.id, name="main", root=Root(layers=("/l",)), args=("sh",))
RUNTIME = Runtime("runc", "/usr/bin/runc", "1.1", Path("/run/x/oci"), systemd=False)


def _document(tmp_path: Path, pod: PodSpec = POD, spec: ContainerSpec = SPEC) -> dict[str, object]:
    paths = Layout(tmp_path / "state", tmp_path / "root").pod(pod.id)
    identity = Identity(1000, 1001, (1001, 7), "/home/me")
    inputs = oci.Inputs(pod, spec, paths, tmp_path, identity, [], "/orlop/p/c")
    return json.loads(json.dumps(oci.document(inputs)))


def _kinds(document: dict[str, object]) -> dict[str, str]:
    linux = document["linux"]
    assert isinstance(linux, dict)
    return {entry["type"]: entry.get("path", "") for entry in linux["namespaces"]}


def test_namespaces_follow_the_pod(tmp_path: Path) -> None:
    kinds = _kinds(_document(tmp_path))
    assert kinds["network"].endswith("/ns/net")
    assert kinds["ipc"].endswith("/ns/ipc")
    assert kinds["pid"] == ""
    assert "user" not in kinds
    node = NamespaceMode.NODE
    host = PodSpec(
        id="p", name="a", namespace="b", uid="c", namespaces=Namespaces(network=node, ipc=node, pid=node)
    )
    spec = ContainerSpec(id="c", pod_id="p", name="m", args=("x",), namespaces=host.namespaces)
    assert set(_kinds(_document(tmp_path, host, spec))) - {"cgroup"} == {"mount"}


def test_a_process_has_the_usual_limits_as_far_as_the_daemon_can_give_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {resource.RLIMIT_NOFILE: (100, 20000), resource.RLIMIT_NPROC: (9, 9), resource.RLIMIT_CORE: (0, -1)}
    monkeypatch.setattr(oci.resource, "getrlimit", own.__getitem__)

    def given(spec: ContainerSpec, effective: int) -> dict[str, int]:
        monkeypatch.setattr(oci, "_status", lambda field: effective)
        process = _document(tmp_path, POD, spec)["process"]
        assert isinstance(process, dict)
        return {one["type"]: one["hard"] for one in process["rlimits"]}

    infinity = (1 << 64) - 1
    root = (1 << 41) - 1
    assert given(SPEC, root) == {"RLIMIT_NOFILE": 1 << 20, "RLIMIT_NPROC": infinity, "RLIMIT_CORE": infinity}
    bound = root & ~(1 << 24)
    assert given(SPEC, bound) == {"RLIMIT_NOFILE": 20000, "RLIMIT_NPROC": 9, "RLIMIT_CORE": infinity}
    asked = msgspec.structs.replace(SPEC, rlimits=(Rlimit(name="NPROC", soft=1, hard=2),))
    assert given(asked, root)["RLIMIT_NPROC"] == 2


def test_process_and_security(tmp_path: Path) -> None:
    spec = ContainerSpec(
        id="c",
        pod_id="p",
        name="m",
        args=("a", "b"),
        env=(("PATH", b"/bin"), ("X", "ü".encode())),
        cwd="/srv",
        tty=True,
        security=Security(
            capabilities=("CHOWN", "NO_SUCH"),
            no_new_privs=True,
            read_only_root=True,
            masked_paths=("/proc/kcore",),
            seccomp=Seccomp(mode=SeccompMode.RUNTIME_DEFAULT),
        ),
    )
    document = _document(tmp_path, spec=spec)
    process = document["process"]
    assert isinstance(process, dict)
    assert process["env"] == ["PATH=/bin", "X=ü", "HOME=/home/me"]
    assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [1001, 7]}
    assert process["capabilities"]["bounding"] == ["CAP_CHOWN"]
    assert (process["cwd"], process["terminal"], process["noNewPrivileges"]) == ("/srv", True, True)
    linux = document["linux"]
    assert isinstance(linux, dict)
    assert linux["maskedPaths"] == ["/proc/kcore"]
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert document["root"] == {"path": str(tmp_path), "readonly": True}
    bad = ContainerSpec(id="c", pod_id="p", name="m", args=("a",), env=(("BAD", b"\xff"),))
    with pytest.raises(InvalidArgument, match="BAD"):
        _document(tmp_path, spec=bad)


def test_volume_at_a_system_place_replaces_it(tmp_path: Path) -> None:
    spec = ContainerSpec(
        id="c",
        pod_id="p",
        name="m",
        args=("a",),
        mounts=(Mount(container_path="/etc/hosts/", host_path="/x"),),
    )
    found = volumes.system_mounts(POD, spec, Layout(tmp_path, tmp_path).pod("p"))
    targets = [entry["destination"] for entry in found]
    assert "/etc/hosts" not in targets
    assert "/etc/resolv.conf" in targets
    assert volumes.root_propagation(spec) == ""
    both = (Mount(container_path="/a", propagation=Propagation.BIDIRECTIONAL), *spec.mounts)
    assert volumes.root_propagation(ContainerSpec(id="c", pod_id="p", name="m", mounts=both)) == "rshared"


def _host(monkeypatch: pytest.MonkeyPatch, *controllers: str) -> None:
    host = cgroups.Hierarchy(2, Path("/sys/fs/cgroup"), dict.fromkeys(controllers, Path("/sys/fs/cgroup")))
    monkeypatch.setattr(cgroups, "hierarchy", lambda: host)


def test_limits_that_the_host_does_not_count_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _host(monkeypatch, "cpu", "memory")
    limits = Resources(memory_limit=5, pids_limit=9, hugepage_limits=(("2MB", 0), ("1GB", 0)))
    assert oci.resources(limits) == {"memory": {"limit": 5, "swap": 5}}


def test_resources_say_only_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    _host(monkeypatch, "cpu", "memory", "pids", "hugetlb")
    assert oci.resources(Resources()) == {}
    found = oci.resources(Resources(cpu_shares=2, pids_limit=9, hugepage_limits=(("2MB", 0),)))
    assert found == {
        "cpu": {"shares": 2},
        "pids": {"limit": 9},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
    }
    assert oci.resources(Resources(memory_limit=5, swap_limit=6))["memory"] == {"limit": 5, "swap": 6}


def changed(**fields: object) -> ContainerSpec:
    return msgspec.structs.replace(SPEC, **fields)


def test_a_refusal_reads_the_same_each_time() -> None:
    one, two = (
        refusal("container c cannot be created", f"mkdir /run/orlop/process/{letter * 64}/c: no space")
        for letter in "ab"
    )
    assert str(one) == str(two) == "container c cannot be created: mkdir /run/orlop/process/ID/c: no space"
    assert type(one) is FailedPrecondition
    bad = refusal("x", 'runc create failed: unable to start container process: exec: "y": not found')
    assert type(bad) is CannotRun


@pytest.mark.parametrize(
    ("version", "mixed", "works"), [(1, True, False), (1, False, True), (2, False, True)]
)
async def test_crun_is_not_ready_on_a_host_with_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, mixed: bool, works: bool
) -> None:
    crun = tmp_path / "crun"
    crun.write_text("#!/bin/sh\n[ $1 = features ] && echo '{}' || echo crun version 1.8.1\n")
    crun.chmod(0o755)
    host = cgroups.Hierarchy(version, tmp_path, {}, (), tmp_path if mixed else None)
    monkeypatch.setattr(cgroups, "hierarchy", lambda: host)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    config = Config(process=ProcessConfig(runtime="crun"))
    if works:
        assert (await runtime.find(config, tmp_path)).version == "1.8.1"
    else:
        with pytest.raises(FailedPrecondition, match="both versions"):
            await runtime.find(config, tmp_path)


def test_command_line_of_the_monitor(tmp_path: Path) -> None:
    paths = Layout(tmp_path / "state", tmp_path / "root").pod("p").container("c")
    options = changed(tty=True, stdin=True, stdin_once=False, sink=Sink(log="/logs/0.log"))
    found = conmon.command("/usr/bin/conmon", RUNTIME, "c", paths, options)
    pairs = list(itertools.pairwise(found))
    assert ("--log-path", "k8s-file:/logs/0.log") in pairs
    assert ("--runtime-arg", "--root=/run/x/oci") in pairs
    assert {"--terminal", "--stdin", "--leave-stdin-open"} <= set(found)
    once = changed(tty=False, stdin=True, stdin_once=True, sink=Sink())
    found = conmon.command("conmon", RUNTIME, "c", paths, once)
    assert "--leave-stdin-open" not in found
    assert "none:" in found
    raw = Sink(stdout="/run/out")
    direct = changed(tty=False, stdin=False, stdin_once=False, sink=raw)
    assert "passthrough:" in conmon.command("conmon", RUNTIME, "c", paths, direct)
    attached = changed(tty=False, stdin=True, stdin_once=False, sink=raw)
    assert "none:" in conmon.command("conmon", RUNTIME, "c", paths, attached)


def test_last_error_of_a_runtime(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert runtime.last_error(log) == ""
    log.write_text(
        '{"level":"error","msg":"first"}\n{"level":"error","msg":"second"}\n{"level":"info"}\nnoise\n'
    )
    assert runtime.last_error(log) == "second"


@given(st.binary(max_size=300))
def test_any_log_of_a_runtime_is_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    log = tmp_path_factory.getbasetemp() / "runtime.log"
    log.write_bytes(data)
    assert isinstance(runtime.last_error(log), str)


def test_records_are_read_back_and_damage_is_nothing(tmp_path: Path) -> None:
    layout.save(
        tmp_path / "pod.json", PodState(addresses=("10.0.0.1",), holder=KnownProcess(pid=4, start_time=5))
    )
    assert layout.load_pod(tmp_path / "pod.json") == PodState(
        addresses=("10.0.0.1",), holder=KnownProcess(pid=4, start_time=5)
    )
    state = ContainerProcesses(
        init=KnownProcess(pid=1), monitor=KnownProcess(pid=2), cgroup="/x", started_at=3
    )
    layout.save(tmp_path / "container.json", state)
    assert layout.load_container(tmp_path / "container.json") == state
    (tmp_path / "pod.json").write_bytes(b"{")
    assert layout.load_pod(tmp_path / "pod.json") is None
    assert layout.load_container(tmp_path / "none") is None


@pytest.mark.parametrize("pod_id", ["", "../x", "a/b", ".hidden"])
def test_ids_that_are_paths_are_refused(tmp_path: Path, pod_id: str) -> None:
    with pytest.raises(InvalidArgument):
        Layout(tmp_path, tmp_path).pod(pod_id)


def test_exit_files(tmp_path: Path) -> None:
    path = tmp_path / "exit"
    assert conmon.exit_code(path) is None
    path.write_text("")
    assert conmon.exit_code(path) is None
    path.write_text("137")
    found = conmon.exit_code(path)
    assert found is not None
    assert found[0] == 137


def test_resolv_conf() -> None:
    dns = Dns(servers=("1.1.1.1", "8.8.8.8"), searches=("a", "b"), options=("ndots:2",))
    assert podns.resolv_conf(dns) == "search a b\nnameserver 1.1.1.1\nnameserver 8.8.8.8\noptions ndots:2\n"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("net.ipv4.tcp_syncookies", "net"),
        ("net/ipv4/conf/eth0.5/forwarding", "net"),
        ("kernel.shmmax", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("kernel.panic", ""),
        ("vm.swappiness", ""),
    ],
)
def test_sysctls_belong_to_namespaces(name: str, kind: str) -> None:
    assert podns.sysctl_namespace(name) == kind


def test_checks_name_the_reason() -> None:
    mapping = (IdMapping(container_id=0, host_id=1, length=1),)
    user = PodSpec(
        id="p",
        name="n",
        namespace="s",
        uid="u",
        namespaces=Namespaces(user=NamespaceMode.POD, uid_mappings=mapping, gid_mappings=mapping),
    )
    checks.check_pod(user, user_namespaces=True)
    with pytest.raises(FailedPrecondition, match="user namespaces"):
        checks.check_pod(user, user_namespaces=False)
    rro = Mount(container_path="/x", host_path="/x", read_only=True, recursive_read_only=True)
    spec = ContainerSpec(id="c", pod_id="p", name="m", root=Root(layers=("/l",)), mounts=(rro,))
    with pytest.raises(FailedPrecondition, match="recursively"):
        checks.check_container(spec, POD, RUNTIME)


def test_devices_are_looked_up() -> None:
    found = devices.collect(
        ContainerSpec(
            id="c",
            pod_id="p",
            name="m",
            devices=(Device(host_path="/dev/null", container_path="/dev/mine", permissions="r"),),
        )
    )
    assert [(node["path"], node["type"], node["major"]) for node in found.nodes] == [("/dev/mine", "c", 1)]
    assert found.rules[0] == {"allow": False, "access": "rwm"}
    assert found.rules[1]["access"] == "r"


def test_selinux_labels() -> None:
    label = selinux.file_label("system_u:system_r:container_t:s0:c1,c2")
    assert label == "system_u:object_r:container_file_t:s0:c1,c2"
    assert selinux.file_label("a:b:c").endswith(":s0")
    with pytest.raises(InvalidArgument):
        selinux.file_label("nonsense")


async def test_apparmor_is_asked_for_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apparmor, "enabled", lambda: False)
    assert await apparmor.profile_of(Security(apparmor="runtime/default")) == ""
    with pytest.raises(FailedPrecondition, match="not enabled"):
        await apparmor.profile_of(Security(apparmor="localhost/mine"))


def test_user_database_of_a_hostile_image(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "outside").write_text("evil:x:7:7::/:\n")
    (root / "etc" / "passwd").symlink_to("../../outside")
    os.mkfifo(root / "etc" / "group")
    with pytest.raises(InvalidArgument, match="evil"):
        identity.resolve(Security(user="evil"), root)
    (root / "real").write_text("good:x:8:9::/srv:\n")
    (root / "etc" / "passwd").unlink()
    (root / "etc" / "passwd").symlink_to("/real")
    found = identity.resolve(Security(user="good"), root)
    assert (found.uid, found.gid, found.home) == (8, 9, "/srv")
