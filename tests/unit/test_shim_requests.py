"""What containerd asks of a shim: flags, root file systems, streams, whose processes are seen."""

from __future__ import annotations

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from orlop.bundle import document, features
from orlop.bundle.roles import Role
from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError
from orlop.sandbox.spec import NamespaceMode
from orlop.shim import placing, rootfs, stdio
from orlop.shim.command import main, protobuf, start
from orlop.shim.command.main import bootstrap, parsed
from orlop.shim.rootfs import RootMount
from tests.patience import PATIENCE

OVERLAY = RootMount(
    kind="overlay", source="overlay", options=("lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "index=off")
)


def test_flags_are_gos() -> None:
    given = parsed(["-namespace", "k8s.io", "--id=one", "-debug", "-address", "/run/c.sock", "start"])
    assert given.action == "start"
    assert given.options == {"namespace": "k8s.io", "id": "one", "debug": "true", "address": "/run/c.sock"}
    for wrong in (["-nothing", "start"], ["-id"]):
        with pytest.raises(InvalidArgument):
            parsed(wrong)


def test_the_usual_root_file_systems_are_known() -> None:
    rootfs.check(())
    rootfs.check((OVERLAY,))
    rootfs.check((RootMount(kind="bind", source="/snap/1/fs", options=("rbind", "ro")),))
    rootfs.check((RootMount(kind="ext4", source="/dev/loop7", options=("ro", "nodev")),))


@pytest.mark.parametrize(
    "mount",
    [
        RootMount(kind="proc", source="proc"),
        RootMount(kind="nfs", source="host:/x"),
        RootMount(kind="bind", source="relative", options=("bind",)),
        RootMount(kind="bind", source="/a/../etc", options=("bind",)),
        RootMount(kind="ext4", source="/dev/sda", options=("errors=panic",)),
        RootMount(kind="overlay", source="overlay", options=("upperdir=/u", "workdir=/w")),
        RootMount(kind="overlay", source="overlay", options=("lowerdir=/a,upperdir=/etc",)),
        RootMount(kind="overlay", source="overlay", options=("lowerdir=/a", "lowerdir")),
        RootMount(kind="bind", source="/a", options=("bind",) * 65),
    ],
)
def test_other_mounts_are_refused(mount: RootMount) -> None:
    with pytest.raises(OrlopError):
        rootfs.check((mount,))


def test_streams_are_fifos_or_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    (tmp_path / "plain").touch()
    found = stdio.of("", f"{tmp_path}/out", f"file://{tmp_path}/plain", terminal=False)
    assert found.fifos == [f"{tmp_path}/out"]
    for wrong in ("relative", "http://host/x", f"file://{tmp_path}/plain/below"):
        with pytest.raises(OrlopError):
            stdio.of("", wrong, "", terminal=False)
    with pytest.raises(OrlopError):
        stdio.of("", f"{tmp_path}/out", "binary:///bin/logger", terminal=False)
    assert stdio.of("", f"{tmp_path}/out", f"{tmp_path}/never", terminal=True).stderr == ""
    stdio.of("", f"file://{tmp_path}/new/directory/log", "", terminal=False)
    assert (tmp_path / "new/directory").is_dir()


def config(pid: str = "", **annotations: str) -> document.OciConfig:
    return document.config(
        json.dumps(
            {
                "ociVersion": "1.0.2",
                "process": {"cwd": "/", "args": ["true"]},
                "root": {"path": "rootfs"},
                "linux": {"namespaces": [{"type": "pid", "path": pid}, {"type": "network", "path": "/ns"}]},
                "annotations": {f"io.kubernetes.cri.{key}": one for key, one in annotations.items()},
            }
        ).encode()
    )


def test_a_task_is_a_vm_of_its_own_a_sandbox_or_one_in_a_sandbox() -> None:
    assert placing.place(config()) == (Role.ALONE, "")
    assert placing.place(config(**{"container-type": "sandbox"})) == (Role.SANDBOX, "")
    member = {"container-type": "container", "sandbox-id": "abc"}
    assert placing.place(config(**member)) == (Role.MEMBER, "abc")
    with pytest.raises(InvalidArgument, match="does not name its sandbox"):
        placing.place(config(**{"container-type": "container"}))
    assert placing.network(config()) == "/ns"


def in_group(path: str) -> str:
    asked = msgspec.structs.replace(config(), linux=document.OciLinux(cgroups_path=path))
    return placing.pod(asked, "k8s.io", "abc", netns="").cgroup_parent


def test_a_vm_is_in_the_control_group_of_its_pod() -> None:
    assert in_group("") == in_group("/k8s.io/abc") == "", "what containerd says when nobody asked"
    assert in_group("/kubepods/burstable/pod1/abc") == "/kubepods/burstable/pod1"
    assert in_group("kubepods-pod1.slice:cri-containerd:abc") == "/kubepods.slice/kubepods-pod1.slice"
    with pytest.raises(InvalidArgument):
        in_group("/kubepods/../../etc/abc")


def test_what_no_vm_can_have_names_the_task_and_what_can() -> None:
    with pytest.raises(FailedPrecondition, match=r"^task abc asks for the host's IPC .*as runc"):
        placing.check(config(), "abc")


def test_the_namespace_of_the_vms_process_is_the_pods() -> None:
    shared = config(pid="/proc/4711/ns/pid")
    assert placing.namespaces(config(), "one", []).pid is NamespaceMode.CONTAINER
    assert placing.namespaces(shared, "one", []).pid is NamespaceMode.POD
    assert placing.namespaces(shared, "one", None).pid is NamespaceMode.CONTAINER, "it is in no sandbox"


def started(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, newest: str) -> bytes:
    """What the command answers who calls it in the current directory, without a daemon behind it."""
    monkeypatch.setenv("MAX_SHIM_VERSION", newest)
    monkeypatch.setenv("ORLOP_STATE", "/state")
    monkeypatch.setattr(main, "call", lambda *_: b"")
    monkeypatch.setattr(
        start, "KeeperConnection", lambda *_: contextlib.nullcontext(SimpleNamespace(link=None))
    )
    monkeypatch.setattr(main, "_params", dict)
    # As CRI-O calls it, whose -address is nobody's.
    given = ["-namespace", "default", "-address", "", "-publish-binary", "/crio", "-id", "one", "start"]
    assert main.main(given) == 0
    said, complaint = capfdbinary.readouterr()
    assert not complaint, "CRI-O takes that for a part of the answer"
    return said


def test_version_2_is_told_by_an_address_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    for newest in ("", "2"):
        assert started(capfdbinary, monkeypatch, newest) == b"unix:///state/shim-default.sock"
    assert (tmp_path / "address").read_text() == "unix:///state/shim-default.sock"
    newer = json.loads(started(capfdbinary, monkeypatch, "3"))
    assert newer == {"version": 3, "address": "unix:///state/shim-default.sock", "protocol": "ttrpc"}


def test_what_a_shim_has_is_told_as_runtimes_tell_it(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main.main(["features"]) == 0
    assert json.loads(capfdbinary.readouterr().out) == features.FEATURES


def test_who_reads_the_log_of_a_shim_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "LOG_TIME", 600.0)
    os.mkfifo("log")
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(Path("log").read_bytes)
        started(capfdbinary, monkeypatch, "2")
        assert reading.result(60 * PATIENCE) == b""


def test_what_containerd_says_at_the_start_may_have_anything_beside_it() -> None:
    def field(number: int, value: bytes) -> bytes:
        return protobuf.text(number, value)

    said = field(1, b"one") + field(2, b"k8s.io") + field(4, b"2.3.4") + field(5, b"/run/c.ttrpc")
    expected = {1: "one", 2: "k8s.io", 4: "2.3.4", 5: "/run/c.ttrpc"}
    assert bootstrap(said) == expected
    extension = field(1, field(1, b"runtimeoptions.v1.Options") + field(2, b"x" * 200))
    assert bootstrap(said + field(8, extension)) == expected
    options = field(1, b"runtimeoptions.v1.Options") + field(2, b"x" * 200)
    assert bootstrap(options) == bootstrap(b"") == bootstrap(b"\xff") == {}
