"""containerd, which nobody here wrote, with containers that are VMs behind its own kind of shim."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance import tools
from tests.doors.containerd import ASKED, HANDLERS, RUNTIME, WITH_SANDBOXERS, Containerd, containerd
from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE

LIMIT = 180 * PATIENCE
RUN = ("run", "--runtime", RUNTIME)
MIB = 1 << 20
NEWEST_SPOKEN = {"2.3": 3}
"""The version of the task service that a containerd notes; those before 2.0 know the second alone."""


@pytest.fixture(scope="module", params=ASKED)
def ctr(request: pytest.FixtureRequest, shared_node: Node, registry: str) -> Iterator[Containerd]:
    with (
        tempfile.TemporaryDirectory(prefix="orlop-ctr-") as name,
        containerd(Path(name), request.param, shared_node.scratch / "state", registry) as one,
    ):
        one.pull(BUSYBOX)
        yield one
        one.remove_containers()
        shared_node.wait_no_leaks_but_warm(60 * PATIENCE)


def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


def test_a_container_ends_as_its_program_does(ctr: Containerd) -> None:
    script = "echo out; echo err >&2; cat /proc/sys/kernel/hostname; exit 7"
    done = ctr(*RUN, "--rm", BUSYBOX, "ends", "sh", "-c", script, check=False)
    assert done.code == 7 and done.out.startswith("out\n") and done.err.endswith("err\n"), done
    assert ctr("container", "ls", "-q").out == ""


def status(ctr: Containerd, name: str) -> str:
    rows = [line.split() for line in ctr("task", "ls").out.splitlines()[1:]]
    return next((row[2] for row in rows if row[0] == name), "")


def test_it_is_a_vm_that_is_looked_at_paused_and_ended(ctr: Containerd) -> None:
    ctr(*RUN, "-d", BUSYBOX, "stays", "sh", "-c", "trap 'exit 3' TERM; touch /ready; sleep 1000 & wait")
    ready = ("task", "exec", "--exec-id", "r", "stays", "test", "-e", "/ready")
    until(lambda: ctr(*ready, check=False).code == 0, "it does not run")
    kernel = ctr("task", "exec", "--exec-id", "e", "stays", "cat", "/proc/sys/kernel/osrelease").out
    assert kernel.strip() != os.uname().release
    noted = ctr.directory / "state/io.containerd.runtime.v2.task/default/stays/bootstrap.json"
    for version in NEWEST_SPOKEN.keys() & {ctr.release}:
        assert json.loads(noted.read_text())["version"] == NEWEST_SPOKEN[version]
    assert "memory.usage" in ctr("task", "metrics", "stays").out
    ctr("task", "pause", "stays")
    assert status(ctr, "stays") == "PAUSED"
    ctr("task", "resume", "stays")
    assert status(ctr, "stays") == "RUNNING"
    again = ctr(*RUN, "-d", BUSYBOX, "stays", "true", check=False)
    assert again.code and "already exists" in again.err, again
    assert ctr("task", "rm", "stays", check=False).code, "it runs"
    ctr("task", "kill", "-s", "TERM", "stays")
    until(lambda: status(ctr, "stays") == "STOPPED", "it does not end")
    ctr("task", "rm", "stays", check=False)
    ctr("container", "rm", "stays")
    assert status(ctr, "stays") == ""


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest, ctr: Containerd) -> str:
    name: str = request.param
    if HANDLERS[name] and ctr.release not in WITH_SANDBOXERS:
        pytest.skip(f"containerd {ctr.release} does not let a runtime choose its sandboxer")
    return name


def test_a_kubelets_pod_is_one_vm(ctr: Containerd, shared_node: Node, handler: str) -> None:
    pod, container = ctr.directory / "pod.json", ctr.directory / "container.json"
    metadata = {"name": "p", "namespace": "n", "uid": "u", "attempt": 0}
    described = {"metadata": metadata, "hostname": "inside", "log_directory": os.fspath(ctr.directory)}
    pod.write_text(json.dumps({**described, "linux": {"cgroup_parent": shared_node.cgroup_parent}}))
    script = "trap 'exit 3' TERM; touch /dev/shm/mark; hostname; sleep 1000 & wait"
    ctr.cri("pull", BUSYBOX)
    pod_id = ctr.cri("runp", "-r", handler, pod)
    made = []
    for name in ("first", "second"):
        described = {"metadata": {"name": name}, "image": {"image": BUSYBOX}, "log_path": f"{name}.log"}
        container.write_text(json.dumps({**described, "command": ["sh", "-c", script], "linux": {}}))
        made.append(ctr.cri("create", pod_id, container, pod))
        ctr.cri("start", made[-1])
    until(lambda: all("inside" in ctr.cri("logs", one) for one in made), "they do not run")
    kernels = {ctr.cri("exec", one, "cat", "/proc/sys/kernel/random/boot_id") for one in made}
    assert len(kernels) == 1 and kernels != {Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
    assert ctr.cri("exec", "-s", made[0], "ls", "/dev/shm") == "mark", "what the pod's containers share"
    assert "eth0" in ctr.cri("exec", made[0], "cat", "/proc/net/dev")
    (used,) = json.loads(ctr.cri("statsp", "-o", "json"))["stats"]
    assert int(used["linux"]["memory"]["workingSetBytes"]["value"]) > MIB
    assert int(used["linux"]["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    assert {one["attributes"]["id"] for one in used["linux"]["containers"]} == set(made)
    ctr.cri("stop", "-t", str(int(LIMIT)), made[0])
    status = json.loads(ctr.cri("inspect", made[0]))["status"]
    assert (status["state"], status["exitCode"]) == ("CONTAINER_EXITED", 3)
    assert json.loads(ctr.cri("inspect", made[1]))["status"]["state"] == "CONTAINER_RUNNING"
    ctr.cri("stopp", pod_id)
    ctr.cri("rmp", pod_id)
    assert json.loads(ctr.cri("pods", "-o", "json"))["items"] == []


def processes(ctr: Containerd) -> dict[str, int]:
    """Of each task of a kubelet's, on this host."""
    rows = [line.split() for line in ctr("-n", "k8s.io", "task", "ls").out.splitlines()[1:]]
    return {row[0]: int(row[1]) for row in rows}


def test_a_sandbox_that_the_shim_makes_is_a_vm_and_no_container(ctr: Containerd, shared_node: Node) -> None:
    if ctr.release not in WITH_SANDBOXERS:
        pytest.skip(f"containerd {ctr.release} does not let a runtime choose its sandboxer")
    pod, container = ctr.directory / "sandboxed.json", ctr.directory / "inside.json"
    metadata = {"name": "sandboxed", "namespace": "n", "uid": "sandboxed", "attempt": 0}
    resolver = {"servers": ["192.0.2.53"], "searches": ["example.test"]}
    described = {"metadata": metadata, "hostname": "inside", "dns_config": resolver, "linux": {}}
    pod.write_text(json.dumps({**described, "log_directory": os.fspath(ctr.directory)}))
    script = "hostname; cat /etc/resolv.conf; sleep 1000 & wait"
    described = {"metadata": {"name": "inside"}, "image": {"image": BUSYBOX}, "log_path": "inside.log"}
    container.write_text(json.dumps({**described, "command": ["sh", "-c", script], "linux": {}}))
    ctr.cri("pull", BUSYBOX)
    pod_id = ctr.cri("runp", "-r", "orlop-sandbox", pod)
    made = ctr.cri("create", pod_id, container, pod)
    ctr.cri("start", made)
    assert ctr("-n", "k8s.io", "container", "ls", "-q").out.split() == [made], "no container is the sandbox"
    until(lambda: "nameserver 192.0.2.53" in ctr.cri("logs", made), "it does not run")

    def state() -> tuple[str, str]:
        sandbox = json.loads(ctr.cri("inspectp", pod_id))["status"]["state"]
        return sandbox, json.loads(ctr.cri("inspect", made))["status"]["state"]

    runs = ("SANDBOX_READY", "CONTAINER_RUNNING")
    assert state() == runs
    shared_node.kill()
    shared_node.start()
    shared_node.wait_ready()
    assert state() == runs and ctr.cri("exec", made, "hostname") == "inside"
    ctr.kill()
    ctr.start()
    assert state() == runs and ctr.cri("exec", made, "hostname") == "inside"
    os.kill(processes(ctr)[made], signal.SIGKILL)
    until(lambda: state() == ("SANDBOX_NOTREADY", "CONTAINER_EXITED"), "the end of its VM is not known")
    ctr.remove_pods()
    assert processes(ctr) == {}


def test_a_port_of_a_pod_is_forwarded_to_its_loopback(ctr: Containerd, shared_node: Node) -> None:
    pod, container = ctr.directory / "served.json", ctr.directory / "server.json"
    metadata = {"name": "served", "namespace": "n", "uid": "served", "attempt": 0}
    pod.write_text(json.dumps({"metadata": metadata, "log_directory": os.fspath(ctr.directory), "linux": {}}))
    script = "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"
    described = {"metadata": {"name": "server"}, "image": {"image": BUSYBOX}, "log_path": "server.log"}
    container.write_text(json.dumps({**described, "command": ["sh", "-c", script], "linux": {}}))
    ctr.cri("pull", BUSYBOX)
    pod_id = ctr.cri("runp", "-r", "orlop", pod)
    ctr.cri("start", ctr.cri("create", pod_id, container, pod))

    def forwarded() -> bytes:
        port = tools.free_port()
        with ctr.cri_beside("port-forward", pod_id, f"{port}:8080") as running:
            # Somebody else may have taken the port meanwhile.
            until(lambda: answers(port) or running.poll() is not None, "crictl does not listen")
            return fetched(port)

    until(lambda: forwarded() == b"hello\n", "what listens on the loopback of the VM is not reached")
    shared_node.kill()
    shared_node.start()
    shared_node.wait_ready()
    until(lambda: forwarded() == b"hello\n", "a daemon that is started again does not forward")
    ctr.remove_pods()


def answers(port: int) -> bool:
    with socket.socket() as link:
        return link.connect_ex(("127.0.0.1", port)) == 0


def fetched(port: int) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html", timeout=LIMIT) as answer:
            return answer.read()  # type: ignore[no-any-return]
    except OSError:
        return b""


def test_what_cannot_be_says_so(ctr: Containerd) -> None:
    done = ctr(*RUN, "--rm", "--net-host", BUSYBOX, "wants", "true", check=False)
    assert (
        done.code
        and "task wants asks for the host's network namespace, which a VM does not share" in done.err
    ), done
    done = ctr(*RUN, "--rm", BUSYBOX, "missing", "nosuchprogram", check=False)
    assert done.code and "nosuchprogram" in done.err, done


def test_a_containerd_that_is_killed_finds_its_containers_again(ctr: Containerd) -> None:
    script = "trap 'exit 3' TERM; touch /ready; sleep 1000 & wait"
    for name in ("ends-meanwhile", "goes-on"):
        ctr(*RUN, "-d", BUSYBOX, name, "sh", "-c", script)
        ready = ("task", "exec", "--exec-id", "e", name, "test", "-e", "/ready")
        until(lambda ready=ready: ctr(*ready, check=False).code == 0, "it does not run")
    ctr("task", "kill", "-s", "TERM", "ends-meanwhile")
    ctr.kill()
    ctr.start()
    until(lambda: status(ctr, "ends-meanwhile") == "STOPPED", "its end is not known")
    assert "3" in ctr("task", "rm", "ends-meanwhile", check=False).err
    assert status(ctr, "goes-on") == "RUNNING"
    assert ctr("task", "exec", "--exec-id", "late", "goes-on", "sh", "-c", "exit 5", check=False).code == 5
    ctr("task", "kill", "-s", "TERM", "goes-on")
    until(lambda: status(ctr, "goes-on") == "STOPPED", "it does not end")
    ctr("task", "rm", "goes-on", check=False)
    ctr("container", "rm", "ends-meanwhile", "goes-on")


def test_a_daemon_that_is_killed_takes_no_container_with_it(ctr: Containerd, shared_node: Node) -> None:
    script = "i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i; usleep 200000; done; exit 9"
    log = ctr.directory / "counts.log"
    with log.open("wb") as output, log.with_suffix(".err").open("wb") as errors:
        running = subprocess.Popen(
            ctr.argv(*RUN, "--rm", BUSYBOX, "counts", "sh", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=ctr.env,
        )
    until(lambda: len(log.read_text().split()) > 3, "it does not count")
    assert ctr("task", "exec", "--exec-id", "early", "counts", "sh", "-c", "exit 5", check=False).code == 5
    shared_node.kill()
    shared_node.start()
    shared_node.wait_ready()
    assert running.poll() is None
    ctr("task", "exec", "--exec-id", "late", "counts", "touch", "/end")
    assert running.wait(LIMIT) == 9
    counted = [int(line) for line in log.read_text().split()]
    # A FIFO cannot be asked what went through it: a moment may come twice, none is lost.
    assert sorted(set(counted)) == list(range(1, counted[-1] + 1))


LOGGER = """#!/bin/sh
echo "$CONTAINER_NAMESPACE $CONTAINER_ID" > "$2.asked"
cat <&3 > "$2.out" 5>&- &
cat <&4 > "$2.err" 5>&- &
exec 5>&-
wait
echo done > "$2.done"
"""


def logging_program(ctr: Containerd, name: str, script: str = LOGGER) -> tuple[str, Path]:
    """The URI of a program, and what the files that it writes begin with."""
    path = ctr.directory / f"{name}-logger"
    path.write_text(script)
    path.chmod(0o755)
    return f"binary://{path}?into={ctr.directory / name}", ctr.directory / name


def test_a_logging_program_gets_all_and_is_gone_then(ctr: Containerd, shared_node: Node) -> None:
    uri, into = logging_program(ctr, "logged")
    script = "echo warning >&2; i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i; usleep 200000; done; exit 9"
    ctr(*RUN, "-d", "--log-uri", uri, BUSYBOX, "logged", "sh", "-c", script)
    written = into.with_suffix(".out")
    until(lambda: len(written.read_text().split()) > 3, "it does not log")
    shared_node.kill()
    shared_node.start()
    shared_node.wait_ready()
    before = len(written.read_text().split())
    until(lambda: len(written.read_text().split()) > before + 3, "it does not go on")
    ctr("task", "exec", "--exec-id", "e", "logged", "touch", "/end")
    until(lambda: status(ctr, "logged") == "STOPPED", "it does not end")
    ctr("task", "rm", "logged", check=False)
    assert into.with_suffix(".done").exists(), "it is waited for"
    counted = [int(line) for line in written.read_text().split()]
    assert sorted(set(counted)) == list(range(1, counted[-1] + 1))
    assert into.with_suffix(".err").read_text() == "warning\n"
    assert into.with_suffix(".asked").read_text() == "default logged\n"
    ctr("container", "rm", "logged")
    assert list((shared_node.scratch / "state/shim-logging").iterdir()) == []


def test_without_its_logging_program_a_container_is_not_made(ctr: Containerd, shared_node: Node) -> None:
    uri, _ = logging_program(ctr, "dies", "#!/bin/sh\nexit 3\n")
    done = ctr(*RUN, "-d", "--log-uri", uri, BUSYBOX, "dies", "true", check=False)
    assert done.code and "dies-logger ended with exit status 3 before it was ready" in done.err, done
    ctr("container", "rm", "dies")
    assert list((shared_node.scratch / "state/shim-logging").iterdir()) == []


def test_output_goes_to_a_file_in_a_directory_that_is_made(ctr: Containerd) -> None:
    log = ctr.directory / "new/directory/log"
    script = "echo out; echo err >&2"
    ctr(*RUN, "-d", "--log-uri", f"file://{log}", BUSYBOX, "filed", "sh", "-c", script)
    until(lambda: status(ctr, "filed") == "STOPPED", "it does not end")
    ctr("task", "rm", "filed", check=False)
    assert sorted(log.read_text().split()) == ["err", "out"]
    ctr("container", "rm", "filed")


HOOK = f"""#!{sys.executable}
import json, os, subprocess, sys
state = json.load(sys.stdin)
with open(os.environ["NOTES"], "a") as notes:
    print(state["status"], state["id"], state["annotations"]["mark"], file=notes)
if state["status"] == "creating":
    network = "/proc/%d/ns/net" % state["pid"]
    assert os.stat(network).st_ino != os.stat("/proc/self/ns/net").st_ino
    inside = ["nsenter", "--net=" + network, "ip"]
    for words in ("link add eth0 type veth peer name other",
                  "address add 192.0.2.7/24 dev eth0", "link set eth0 up"):
        subprocess.run([*inside, *words.split()], check=True)
"""


def test_hooks_of_the_host_run_and_may_make_the_network(ctr: Containerd) -> None:
    hook, notes, root = (ctr.directory / name for name in ("hook", "notes", "hooked-root"))
    hook.write_text(HOOK)
    hook.chmod(0o755)
    root.mkdir()
    ctr("image", "mount", "--rw", BUSYBOX, os.fspath(root))
    config = ctr.directory / "hooked.json"
    spec = json.loads(ctr("oci", "spec").out)
    spec["root"]["path"] = os.fspath(root)
    spec["process"]["args"] = ["ip", "-o", "-4", "address", "show", "dev", "eth0"]
    spec["annotations"] = {"mark": "here"}
    once = {"path": os.fspath(hook), "env": [f"NOTES={notes}", f"PATH={os.environ['PATH']}"]}
    spec["hooks"] = {name: [once] for name in ("createRuntime", "poststart", "poststop")}
    config.write_text(json.dumps(spec))
    try:
        assert "192.0.2.7/24" in ctr(*RUN, "--rm", "--config", os.fspath(config), "hooked").out
        wanted = ["creating", "running", "stopped"]
        assert notes.read_text() == "".join(f"{status} hooked here\n" for status in wanted)
        once["env"] = ["NOTES=/nowhere/notes"]
        config.write_text(json.dumps(spec))
        done = ctr(*RUN, "--rm", "--config", os.fspath(config), "hooked", check=False)
        assert done.code and f"error running hook {hook}" in done.err, done
    finally:
        ctr("image", "unmount", os.fspath(root))
