"""A Kubernetes cluster of one's own for tests: real control plane, real kubelets, Orlop below. Needs root.

    with cluster(nodes=2) as one:
        one.apply(POD)
        one.kubectl("wait", "--for=condition=Ready", "pod/hello", "--timeout=120s")
        one.nodes[0].kill("kubelet")

All of it, network included, is in an :mod:`enclosure <tests.node_e2e.enclosure>`, and each node in another
within that: nothing stays when the block, or the process, ends, however it ends. At the end of a block that
did not fail the nodes stop, remove their pods, and look for what those have left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from bench.peers import containerd as containerd_and_runc
from bench.peers import crio as crio_and_pinns

from orlop.sandbox.vm.listeners import is_served
from tests.cluster import certificates, layout
from tests.cluster.layout import Place
from tests.conformance import tools
from tests.node import Done, base_config, build_guest, node
from tests.node_e2e import enclosure, images, programs
from tests.patience import PATIENCE

START_TIMEOUT = 240.0 * PATIENCE
STOP_TIMEOUT = 240.0 * PATIENCE
CALL_TIMEOUT = 120.0 * PATIENCE
COMES_TRUE = 180.0 * PATIENCE
CONTROL = "tests.cluster.control"
MANIFESTS = Path(__file__).with_name("manifests.yaml")
RUNTIME_CLASSES = Path(__file__).resolve().parents[2] / "packaging/kubernetes/runtimeclasses.yaml"
WEIGHT = 6
"""At busy processors a cluster counts as so many processes."""

T = TypeVar("T")


def eventually(look: Callable[[], T], right: Callable[[T], bool]) -> T:
    """What is seen once it is right. Raises AssertionError when it does not become so."""
    limit = time.monotonic() + COMES_TRUE
    while not right(found := look()):
        assert time.monotonic() < limit, f"it stays {found!r}"
        time.sleep(0.2)
    return found


def prepare() -> programs.Programs:
    """Make what a cluster needs and has no network for: programs, packages, guest image, template."""
    built = programs.build(programs.CLUSTER)
    tools.cri_tools()
    tools.debian_packages(["etcd-server"])
    tools.peer("coredns")
    base = base_config()
    build_guest(base)
    if not list((base.root_dir / "hypervisor").glob("template-*")):
        # Once, and not once per node at the same time.
        with node("127.0.0.1:1") as one:
            one.wait_ready()
    return built


class Host:
    """Where programs are kept running: a node, or the control plane."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        self.logs = layout.logs(home)

    def run(self, *argv: str, check: bool = True, timeout: float = CALL_TIMEOUT, stdin: str = "") -> Done:
        """Run a command as a process of it."""
        raise NotImplementedError

    def pid(self, program: str) -> int:
        """A program's process id there: ``orlopd``, ``kubelet``, ``kube-apiserver``..."""
        return int((self.logs / f"{program}.pid").read_text())

    def kill(self, program: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a program a signal. One that ends is started again; return when that has been done, and when
        orlopd listens."""
        before = self.pid(program)
        self.run("kill", f"-{number.value}", str(before))
        limit = time.monotonic() + START_TIMEOUT
        while self.pid(program) == before:
            assert time.monotonic() < limit, f"{program} on {self.name} was not started again"
            time.sleep(0.1)
        while program == "orlopd" and not is_served(os.fspath(self.socket)):
            assert time.monotonic() < limit, f"orlopd on {self.name} does not listen"
            time.sleep(0.1)

    def keep(self, program: str, *argv: str) -> None:
        """Have one more program run there, started again whenever it ends, to the end of the cluster."""
        order = layout.orders(self.home) / f"{program}.json"
        aside = order.with_suffix(".new")
        aside.write_text(json.dumps(argv))
        aside.rename(order)
        self._wait_for(program, there=True)

    def leave(self, program: str) -> None:
        """Stop a program that :meth:`keep` was asked for, and keep it no longer."""
        (layout.orders(self.home) / f"{program}.json").unlink()
        self._wait_for(program, there=False)

    def _wait_for(self, program: str, *, there: bool) -> None:
        limit = time.monotonic() + START_TIMEOUT
        while (self.logs / f"{program}.pid").exists() is not there:
            assert time.monotonic() < limit, f"{program} on {self.name} is {'not ' * there}there"
            time.sleep(0.1)


class ClusterNode(Host):
    """A node as tests see it: where it is, what it says, and a way into its namespaces."""

    def __init__(self, directory: Path, place: Place) -> None:
        super().__init__(place.name, directory / place.name)
        self.place, self.address = place, place.address
        self._api = _administrator(directory)

    @property
    def socket(self) -> Path:
        """The socket of its orlopd."""
        return next(self.home.glob("n*/orlop.sock"))

    def kill_orlopd(self) -> None:
        """Kill it; return when its kubelet reaches the next one. That tries again after three seconds
        at most, and refuses until then what it is asked, although somebody listens."""
        self.kill("orlopd")
        # Pods in the kubelet's cache are told without the runtime; these figures are not.
        summary = f"/api/v1/nodes/{self.name}/proxy/stats/summary?only_cpu_and_memory=true"
        asked = (*self._api, "get", "--raw", summary)
        eventually(lambda: self.run(*asked, check=False), lambda done: done.code == 0)

    def run(self, *argv: str, check: bool = True, timeout: float = CALL_TIMEOUT, stdin: str = "") -> Done:
        """Run a command as a process of the node."""
        init = _init_of(f"{self.home.parent.name}/{self.name}", 3)
        inside = ["nsenter", f"--target={init}", "--all", "--", *argv]
        return _done(inside, check=check, timeout=timeout, stdin=stdin)


class Cluster(Host):
    """A running cluster; as a host it is its control plane."""

    def __init__(self, directory: Path, nodes: list[Place], child: subprocess.Popen[bytes]) -> None:
        super().__init__("the control plane", directory)
        self.directory = directory
        self.nodes = [ClusterNode(directory, place) for place in nodes]
        self._child = child
        self._api = _administrator(directory)

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def run(self, *argv: str, check: bool = True, timeout: float = CALL_TIMEOUT, stdin: str = "") -> Done:
        """Run a command where the control plane is: it reaches nodes, pods, and no further."""
        return _done(self._inside(argv), check=check, timeout=timeout, stdin=stdin)

    def _inside(self, argv: Sequence[str]) -> list[str]:
        init = _init_of(self.directory.name, 2)
        return ["nsenter", f"--target={init}", "--all", "--", *argv]

    def kubectl(
        self, *arguments: str, check: bool = True, timeout: float = CALL_TIMEOUT, stdin: str = ""
    ) -> Done:
        """Run kubectl as the administrator. Raises AssertionError when it fails, unless told not to."""
        return self.run(*self.administrator(*arguments), check=check, timeout=timeout, stdin=stdin)

    def administrator(self, *arguments: str) -> list[str]:
        """The command line of kubectl as the administrator, for who is in the cluster already."""
        return [*self._api, *arguments]

    @contextlib.contextmanager
    def watching(self, *arguments: str) -> Iterator[IO[str]]:
        """What a kubectl command that watches says, line by line as it comes, until the block ends."""
        argv = self._inside(self.administrator(*arguments))
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout is not None
            try:
                yield child.stdout
            finally:
                child.kill()

    def json(self, *arguments: str) -> Any:
        """A kubectl command with JSON output, decoded."""
        return json.loads(self.kubectl(*arguments, "-o", "json").out)

    def apply(self, *manifests: str | Path | Mapping[str, Any]) -> None:
        """Apply manifests: texts, files or objects."""
        for manifest in manifests:
            text = manifest.read_text() if isinstance(manifest, Path) else manifest
            text = text if isinstance(text, str) else json.dumps(text)
            self.kubectl("apply", "-f", "-", stdin=text)

    def wait(self, what: str, condition: str, *arguments: str, timeout: float = 180.0 * PATIENCE) -> None:
        """Wait for a condition as kubectl knows them: ``wait("pod/hello", "condition=Ready")``."""
        options = [f"--for={condition}", f"--timeout={timeout:.0f}s", *arguments]
        self.kubectl("wait", what, *options, timeout=timeout + CALL_TIMEOUT)

    def rolled_out(self, what: str, *arguments: str, timeout: float = 180.0 * PATIENCE) -> None:
        """Wait until all of a Deployment or a DaemonSet runs."""
        options = [f"--timeout={timeout:.0f}s", *arguments]
        self.kubectl("rollout", "status", what, *options, timeout=timeout + CALL_TIMEOUT)

    def wait_ready(self) -> None:
        """Wait for the API server, bring what every cluster has, and wait for the nodes."""
        limit = time.monotonic() + START_TIMEOUT
        while self.kubectl("get", "--raw=/readyz", check=False).code != 0:
            self._check(limit, "the API server does not answer")
        self.apply(RUNTIME_CLASSES, MANIFESTS)
        while len(self.json("get", "nodes")["items"]) < len(self.nodes):
            self._check(limit, "the nodes do not come")
        self.wait("node", "condition=Ready", "--all")
        # Pods need it, and a controller makes it when it comes to that.
        while self.kubectl("get", "serviceaccount", "default", check=False).code != 0:
            self._check(limit, "there is no service account")

    def _check(self, limit: float, problem: str) -> None:
        assert self.alive(), f"the cluster has ended\n{self.said()}"
        assert time.monotonic() < limit, f"{problem}\n{self.said()}"
        time.sleep(0.2)

    def said(self, lines: int = 8) -> str:
        """The last lines of each log."""
        found = []
        for place in (layout.logs(self.directory), *(one.logs for one in self.nodes)):
            for log in sorted(place.glob("*.log")):
                with contextlib.suppress(OSError):
                    tail = log.read_text(errors="replace").splitlines()[-lines:]
                    found += [f"--- {place.parent.name}/{log.name}", *tail]
        return "\n".join(found)

    def save_logs(self, target: Path) -> None:
        """Copy the logs of all programs."""
        for place in (layout.logs(self.directory), *(one.logs for one in self.nodes)):
            into = target / ("control" if place.parent == self.directory else place.parent.name)
            into.mkdir(parents=True, exist_ok=True)
            for log in place.glob("*.log"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(log, into / log.name)

    def stop(self) -> None:
        """End it in good order. Raises AssertionError when a node left something behind."""
        (self.directory / layout.STOP).touch()
        code = self._child.wait(STOP_TIMEOUT)
        assert code == 0, f"the cluster ended with {code}\n{self.said(40)}"


def _administrator(directory: Path) -> list[str]:
    """How a command line of kubectl begins in a cluster."""
    kubectl = programs.build(programs.CLUSTER).directory / "kubectl"
    return [
        os.fspath(kubectl),
        f"--kubeconfig={layout.kubeconfig(directory)}",
        f"--cache-dir={directory}/kubectl",
    ]


def _done(argv: list[str], *, check: bool, timeout: float, stdin: str = "") -> Done:
    done = Done(
        argv, subprocess.run(argv, input=stdin.encode(), capture_output=True, timeout=timeout, check=False)
    )
    if check and done.code != 0:
        raise AssertionError(repr(done))
    return done


def _init_of(group: str, depth: int) -> int:
    """The first process of an enclosure by the name of its cgroup, so many PID namespaces down."""
    limit = time.monotonic() + START_TIMEOUT
    while time.monotonic() < limit:
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):
                ids = (entry / "status").read_text().split("NSpid:", 1)[1].splitlines()[0].split()
                if len(ids) == depth and ids[-1] == "1" and f"/{group}" in (entry / "cgroup").read_text():
                    return int(entry.name)
        time.sleep(0.1)
    raise AssertionError(f"no process of {group}")


@contextlib.contextmanager
def cluster(
    nodes: int = 2,
    *,
    peers: Sequence[str] = (),
    crio: Sequence[str] = (),
    handler: str = "vm",
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    kubelet: Mapping[str, Any] | None = None,
    tenants: bool = False,
    storage: Path | None = None,
    reports: Path | None = None,
) -> Iterator[Cluster]:
    """A cluster whose nodes are ready, until the block ends.

    The nodes named in ``peers`` (``node2``) have containerd with runc instead of Orlop, to compare; those in
    ``crio`` have CRI-O, whose handlers are those of ``tests/crio``.
    ``handler`` runs pods that name no RuntimeClass; ``extra`` are more keys for the daemons by table of
    their configuration, ``kubelet`` for the kubelets; with ``tenants`` pods' networks are asked of the
    agent of tenants, which the test has to start; ``storage`` is a registry's storage
    (:func:`tests.conformance.images.stored`) in place of the node suite's; logs are copied to ``reports``.
    """
    built = prepare()
    if peers:
        containerd_and_runc()
    if crio:
        crio_and_pinns()
    places = [Place(number) for number in range(1, nodes + 1)]
    order = {
        "nodes": nodes,
        "peers": list(peers),
        "crio": list(crio),
        "handler": handler,
        "extra": dict(extra or {}),
        "kubelet": dict(kubelet or {}),
        "tenants": tenants,
        "storage": os.fspath(storage or images.storage(built)),
    }
    with enclosure.scratch() as directory:
        layout.logs(directory).mkdir()
        layout.orders(directory).mkdir()
        certificates.make(directory, places)
        (directory / layout.ORDER).write_text(json.dumps(order))
        command = [sys.executable, "-m", CONTROL, os.fspath(directory)]
        log = layout.logs(directory) / "control.log"
        child = enclosure.start(directory, command, log, WEIGHT)
        one = Cluster(directory, places, child)
        try:
            one.wait_ready()
            yield one
            one.stop()
        finally:
            if reports is not None:
                one.save_logs(reports)
            child.kill()
            child.wait()
