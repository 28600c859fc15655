"""Bundles without a caller in between: what a caller can do wrong, hooks, terminals, what is left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orlop.oci.command import templates
from tests.conformance import tools
from tests.e2e.outside import root_directory
from tests.node import Done, Node
from tests.patience import PATIENCE

PATIENT = 300 * PATIENCE


class Runtime:
    """``orlop-oci`` with bundles below a directory, for one daemon."""

    def __init__(self, node: Node, place: Path) -> None:
        self._argv = [sys.executable, "-m", "orlop.oci.command.main"]
        self._env = {**os.environ, "ORLOP_STATE": f"{node.scratch}/state"}
        self.place = place
        root_directory(place / "rootfs", tools.busybox())

    def __call__(self, *args: str, code: int = 0) -> Done:
        argv = [*self._argv, *args]
        done = Done(
            argv,
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENT,
                env=self._env,
                cwd=self.place,
                check=False,
            ),
        )
        assert done.code == code, done
        return done

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


def _standing(node: Node) -> list[str]:
    """The processes that stand in for something of this node."""
    wanted = f"{node.scratch}/state/oci-standins"
    limit = time.monotonic() + 30 * PATIENCE
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
