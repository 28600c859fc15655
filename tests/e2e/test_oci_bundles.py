"""Bundles without a caller in between: what a caller can do wrong, hooks, terminals, what is left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orlop.host.cgroups import Cgroup
from orlop.oci.command import templates
from tests.conformance import tools
from tests.e2e.outside import root_directory
from tests.node import Done, Node
from tests.patience import PATIENCE

PATIENT = 300 * PATIENCE


class Runtime:
    """``orlop-oci`` with bundles below a directory, for one daemon; or another runtime by its command."""

    def __init__(self, node: Node, place: Path, *command: str) -> None:
        self._argv = list(command) or [sys.executable, "-m", "orlop.oci.command.main"]
        self._env = {**os.environ, "ORLOP_STATE": f"{node.scratch}/state"}
        self.place = place
        if not (place / "rootfs").exists():
            root_directory(place / "rootfs", tools.busybox())

    def __call__(self, *args: str, code: int = 0) -> Done:
        done = self.ends(*args)
        assert done.code == code, done
        return done

    def ends(self, *args: str) -> Done:
        """What came of a call, right or wrong."""
        argv = [*self._argv, *args]
        # Files: what a container that was made goes on with would keep pipes open.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=PATIENT,
                env=self._env,
                cwd=self.place,
                check=False,
            )
            said = [os.pread(file.fileno(), 1 << 20, 0) for file in (out, err)]
        return Done(argv, subprocess.CompletedProcess(argv, done.returncode, *said))

    def bundle(self, name: str, *args: str, tty: bool = False, **more: Any) -> str:
        """A bundle that runs a command; its directory."""
        config = json.loads(json.dumps(templates.CONFIG))
        config["process"] |= {"args": list(args), "terminal": tty}
        config["root"] = {"path": "../rootfs"}
        (self.place / name).mkdir()
        (self.place / name / "config.json").write_text(json.dumps(config | more))
        return os.fspath(self.place / name)

    def background(self, *args: str) -> subprocess.Popen[bytes]:
        """The same, running beside."""
        null = subprocess.DEVNULL
        return subprocess.Popen(
            [*self._argv, *args], stdin=null, stdout=null, stderr=null, env=self._env, cwd=self.place
        )

    def ids(self) -> list[str]:
        """All containers there are."""
        return self("list", "--quiet").out.split()


@pytest.fixture
def runtime(shared_node: Node, tmp_path: Path) -> Iterator[Runtime]:
    one = Runtime(shared_node, tmp_path)
    yield one
    for name in one.ids():
        one("delete", "--force", name)
    assert _standing(shared_node) == []


def _standing(node: Node, wait: float = 30 * PATIENCE) -> list[str]:
    """The processes that stand in for something of this node, if there still are some after this time."""
    wanted = f"{node.scratch}/state/oci-standins"
    limit = time.monotonic() + wait
    while True:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and os.fspath((entry / "cwd").readlink()) == wanted:
                    found.append(entry.name)
            except OSError:
                continue
        if not found or time.monotonic() > limit:
            return found
        time.sleep(0.1)


def test_what_a_caller_does_wrong_is_one_sentence_and_leaves_nothing(runtime: Runtime) -> None:
    done = runtime("create", "x", code=1)
    assert "config.json: no such file or directory" in done.err
    plain = runtime.bundle("plain", "true")
    terminal = runtime.bundle("terminal", "true", tty=True)
    for arguments, reason in (
        (("create", "-b", plain, "--pid-file", "/nowhere/pid", "x"), "open /nowhere/pid"),
        (("create", "-b", plain, "a/b"), "invalid container ID format"),
        (("create", "-b", plain, "--console-socket", "/x", "x"), "cannot use console socket"),
        (("create", "-b", terminal, "x"), "cannot allocate tty"),
        (("create", "-b", terminal, "--console-socket", "/nowhere/console", "x"), "console socket /nowhere"),
        (("create", "-b", runtime.bundle("absent", "absent"), "x"), "executable file not found in $PATH"),
        (("create", "-b", plain, "--preserve-fds", "1", "x"), "cannot be handed into a VM"),
        (("pause", "x"), "container does not exist"),
        (("checkpoint", "x"), "orlop-oci does not checkpoint containers"),
    ):
        done = runtime(*arguments, code=1)
        assert reason in done.err and len(done.err.splitlines()) == 1, done
    assert runtime.ids() == []
    done = runtime("exec", "x", "true", code=255)
    assert "container does not exist" in done.err


def wrong_calls(runtime: Runtime) -> Iterator[tuple[str, Done]]:
    """What callers do wrong, one thing after the other, by name."""
    place, linux = runtime.place, templates.CONFIG["linux"]
    plain, terminal = runtime.bundle("plain", "sleep", "600"), runtime.bundle("terminal", "sh", tty=True)
    (place / "empty").mkdir()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(f"{place}/gone")

    def create(bundle: str, *options: str) -> Done:
        return runtime.ends("create", "-b", bundle, *options, "x")

    def mounting(name: str, **mount: Any) -> str:
        others = templates.CONFIG["mounts"]
        return runtime.bundle(name, "true", mounts=[*others, {"destination": "/mnt", **mount}])

    def namespace(name: str, **which: str) -> str:
        namespaces = [one for one in linux["namespaces"] if one["type"] != which["type"]]
        return runtime.bundle(name, "true", linux=linux | {"namespaces": [*namespaces, which]})

    yield "no config.json", create(f"{place}/empty")
    yield "no bundle", create(f"{place}/none")
    yield "no such namespace", create(namespace("nowhere", type="network", path="/nowhere"))
    yield "no namespace", create(namespace("file", type="ipc", path="/etc/passwd"))
    yield "another kind of namespace", create(namespace("kind", type="ipc", path="/proc/self/ns/uts"))
    yield "a mount of nothing", create(mounting("source", type="bind", source="/nowhere", options=["bind"]))
    yield "a mount of no kind", create(mounting("type", type="nofs", source="nofs"))
    yield "no program", create(runtime.bundle("absent", "absent"))
    yield "a console socket that is gone", create(terminal, "--console-socket", f"{place}/gone")
    yield "a console socket that never was", create(terminal, "--console-socket", f"{place}/never")
    yield "no console socket", create(terminal)
    yield "a pid file where none can be", create(plain, "--pid-file", f"{place}/none/pid")
    yield "a pid file where nobody writes", create(plain, "--pid-file", "/proc/pid")
    yield "nothing made", runtime.ends("list", "--quiet")
    yield "none", runtime.ends("start", "x")
    yield "none to delete", runtime.ends("delete", "x")
    yield "none to delete by force", runtime.ends("delete", "--force", "x")
    yield "none to enter", runtime.ends("exec", "x", "true")
    yield "one", create(plain)
    yield "a second of the name", create(plain)
    yield "started", runtime.ends("start", "x")
    yield "started again", runtime.ends("start", "x")
    yield "a delete while it runs", runtime.ends("delete", "x")
    yield "a signal of no name", runtime.ends("kill", "x", "NONE")
    yield "deleted by force", runtime.ends("delete", "--force", "x")
    yield "nothing left", runtime.ends("list", "--quiet")


def test_what_a_caller_does_wrong_ends_as_it_does_with_runc(
    runtime: Runtime, shared_node: Node, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    runc = Runtime(shared_node, tmp_path / "other", "runc", "--root", os.fspath(tmp_path / "runc"))
    try:
        for (what, ours), (_, theirs) in zip(wrong_calls(runtime), wrong_calls(runc), strict=True):
            assert ours.code == theirs.code, (what, ours, theirs)
            assert len(ours.err.splitlines()) == (1 if ours.code else 0), (what, ours)
            if what.startswith("nothing"):
                assert ours.out == theirs.out == "", (what, ours, theirs)
    finally:
        runc("delete", "--force", "x")


def test_of_two_creates_of_one_id_one_is_made(runtime: Runtime) -> None:
    bundle = runtime.bundle("sleeper", "sleep", "600")
    arguments = ("create", "-b", bundle, "--pid-file", f"{runtime.place}/pid", "twin")
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda _: runtime.background(*arguments).wait(PATIENT), range(2)))
    assert sorted(codes) == [0, 1] and runtime.ids() == ["twin"]
    state = json.loads(runtime("state", "twin").out)
    assert state["status"] == "created" and state["pid"] == int((runtime.place / "pid").read_text())
    runtime("start", "twin")
    assert "in the running state" in runtime("start", "twin", code=1).err
    done = runtime("delete", "twin", code=1)
    assert "cannot delete container twin that is not stopped" in done.err
    # Others do not see it.
    assert runtime("--root", "/elsewhere", "list", "--quiet").out == ""
    assert json.loads(runtime("ps", "--format", "json", "twin").out) == [state["pid"]]
    options = ("--cwd", "/data", "--env", "A=b")
    done = runtime("exec", *options, "twin", "sh", "-c", "pwd; echo $A; exit 4", code=4)
    assert done.out == "/data\nb\n"
    runtime("update", "--memory", str(32 << 20), "twin")
    assert runtime("exec", "twin", "cat", "/sys/fs/cgroup/memory.max").out == f"{32 << 20}\n"
    told = json.loads(runtime("events", "--stats", "twin").out)
    assert (told["type"], told["id"]) == ("stats", "twin") and told["data"]["cpu"]["usage"]["total"] > 0
    assert told["data"]["memory"]["usage"]["limit"] == 32 << 20 and told["data"]["pids"]["current"] == 1
    assert "container not paused: running" in runtime("resume", "twin", code=1).err
    runtime("pause", "twin")
    assert json.loads(runtime("state", "twin").out)["status"] == "paused"
    for arguments, code in ((("pause", "twin"), 1), (("exec", "twin", "true"), 255), (("delete", "twin"), 1)):
        assert "paused" in runtime(*arguments, code=code).err
    runtime("resume", "twin")
    assert runtime("exec", "twin", "echo", "goes on").out == "goes on\n"
    runtime("pause", "twin")
    # Whoever kills what stands in for it has killed it.
    os.kill(state["pid"], 9)
    limit = time.monotonic() + PATIENT
    while json.loads(runtime("state", "twin").out)["status"] != "stopped":
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert runtime("events", "twin").out == ""
    assert "container not running" in runtime("kill", "twin", "TERM", code=1).err
    runtime("delete", "twin")


def test_a_vm_keeps_the_processor_time_that_it_needs_itself(runtime: Runtime, shared_node: Node) -> None:
    group = Cgroup(f"{shared_node.cgroup_parent}/oci-{os.urandom(3).hex()}")
    limits = {"cpu": {"quota": 5000, "period": 100_000}}
    linux = templates.CONFIG["linux"] | {"cgroupsPath": group.path, "resources": limits}
    runtime("run", "--detach", "-b", runtime.bundle("slow", "sleep", "600", linux=linux), "slow")

    def inside() -> str:
        return runtime("exec", "slow", "cat", "/sys/fs/cgroup/cpu.max").out

    assert (group.cpu_limit(), inside()) == (0.2, "5000 100000\n")
    runtime("update", "--cpu-quota", "50000", "slow")
    assert (group.cpu_limit(), inside()) == (0.5, "50000 100000\n")
    runtime("update", "--cpu-quota", "2000", "slow")
    assert (group.cpu_limit(), inside()) == (0.2, "2000 100000\n")
    runtime("update", "--memory", str(32 << 20), "slow")
    assert group.cpu_limit() == 0.2
    runtime("delete", "--force", "slow")
    assert not group.exists()


def test_hooks_see_the_state_and_can_refuse(runtime: Runtime) -> None:
    def hook(name: str, script: str) -> list[dict[str, Any]]:
        return [{"path": "/bin/sh", "args": [name, "-c", f"cat > {runtime.place}/{name}; {script}"]}]

    kinds = {
        "prestart": "creating",
        "createRuntime": "creating",
        "poststart": "running",
        "poststop": "stopped",
    }
    hooks = {kind: hook(kind, "exit 0") for kind in kinds}
    bundle = runtime.bundle("hooked", "sh", "-c", "exit 3", hooks=hooks)
    assert runtime("run", "-b", bundle, "hooked", code=3).err == ""
    for kind, status in kinds.items():
        state = json.loads((runtime.place / kind).read_text())
        assert (state["id"], state["status"], state["bundle"]) == ("hooked", status, bundle)
    bundle = runtime.bundle("refused", "true", hooks={"createRuntime": hook("no", "echo why >&2; exit 1")})
    done = runtime("run", "-b", bundle, "refused", code=1)
    assert "error running hook /bin/sh" in done.err and "why" in done.err
    assert runtime.ids() == []


def test_a_create_that_is_killed_leaves_no_process_that_stands_in(
    runtime: Runtime, shared_node: Node
) -> None:
    begun = runtime.place / "begun"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {begun}; exec sleep 100000"]}
    bundle = runtime.bundle("cut-short", "true", hooks={"createRuntime": [hook]})
    creating = runtime.background("create", "-b", bundle, "cut-short")
    limit = time.monotonic() + PATIENT
    while not begun.exists():
        assert time.monotonic() < limit and creating.poll() is None
        time.sleep(0.1)
    assert len(_standing(shared_node, wait=0)) == 1
    creating.kill()
    creating.wait()
    assert _standing(shared_node) == []
    assert runtime.ids() == []


def test_files_that_a_caller_has_bound_for_itself_are_found(
    runtime: Runtime, shared_node: Node, tmp_path: Path
) -> None:
    # As buildah does: a mount namespace, and in it what the bundle names.
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "file").write_text("from the host\n")
    for name in ("root", "bound"):
        (tmp_path / name).mkdir()
    binds = " && ".join(
        f"mount --bind {tmp_path}/{source} {tmp_path}/{target}"
        for source, target in (("rootfs", "root"), ("volume", "bound"))
    )
    itself = (sys.executable, "-m", "orlop.oci.command.main")
    apart = ("unshare", "--mount", "sh", "-c")
    one = Runtime(shared_node, tmp_path, *apart, f'{binds} && exec "$@"', "sh", *itself)
    mounts = [{"destination": "/v", "type": "bind", "source": f"{tmp_path}/bound", "options": ["rbind"]}]
    root = {"path": f"{tmp_path}/root"}
    bundle = one.bundle(
        "bound-for-itself", "sh", "-c", "cat /v/file; echo w > /made", mounts=mounts, root=root
    )
    assert one("run", "-b", bundle, "bound-for-itself").out == "from the host\n"
    assert (tmp_path / "rootfs" / "made").read_text() == "w\n"
    hidden = f'mount -t tmpfs none {tmp_path}/bound && touch {tmp_path}/bound/file && exec "$@"'
    other = Runtime(shared_node, tmp_path, *apart, hidden, "sh", *itself)
    bundle = other.bundle("hidden", "cat", "/v/file", mounts=mounts)
    assert "mounted only where its caller sees it" in other("run", "-b", bundle, "hidden", code=1).err
    assert runtime.ids() == []


def test_a_caller_that_dies_with_the_terminal_hangs_up(runtime: Runtime) -> None:
    path = f"{runtime.place}/console"
    script = "trap 'echo hung > /data/up; exit 0' HUP; echo ready > /data/ready; while :; do sleep 0.1; done"
    bundle = runtime.bundle("shell", "sh", "-c", script, tty=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        creating = runtime.background("create", "-b", bundle, "--console-socket", path, "shell")
        link, _ = listener.accept()
        with link:
            name, received, _, _ = socket.recv_fds(link, 4096, 1)
        assert name == b"/dev/ptmx" and creating.wait(PATIENT) == 0
        runtime("start", "shell")
    data = runtime.place / "rootfs/data"
    limit = time.monotonic() + PATIENT
    while not (data / "ready").exists():
        assert time.monotonic() < limit
        time.sleep(0.1)
    os.close(received[0])
    while not (data / "up").exists():
        assert time.monotonic() < limit
        time.sleep(0.1)
    while json.loads(runtime("state", "shell").out)["status"] != "stopped":
        assert time.monotonic() < limit
        time.sleep(0.1)
    runtime("delete", "shell")
