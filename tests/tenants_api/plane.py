"""A real control plane without nodes, for tests: etcd, API server, controllers, on this machine's loopback.

Pods in it are never run, but they are admitted, counted, and deleted as everywhere. Needs no root. All of it
ends with the block, or with the thread that opened it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster import certificates, control, layout
from tests.conformance import tools
from tests.node_e2e import programs
from tests.patience import PATIENCE

COMES_TRUE = 60.0 * PATIENCE
CALL_TIMEOUT = 60.0 * PATIENCE
CONTROLLERS = "kube-controller-manager"
PROGRAMS = ("kube-apiserver", CONTROLLERS, "kubectl")
OPERATOR = "system:serviceaccount:orlop-system:orlop-tenants"

T = TypeVar("T")


def eventually(look: Callable[[], T], right: Callable[[T], bool] = bool) -> T:
    """What is seen once it is right. Raises AssertionError when it does not become so."""
    limit = time.monotonic() + COMES_TRUE
    while not right(found := look()):
        assert time.monotonic() < limit, f"it stays {found!r}"
        time.sleep(0.1)
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


class Child:
    """A program that ends with us, and its log."""

    def __init__(self, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(os.fspath, argv)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
            )

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal and wait; one that does not end is killed."""
        self.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(30.0 * PATIENCE)
        self.process.kill()
        return self.process.wait()

    def said(self) -> str:
        """The last of what it wrote."""
        return self.log.read_text(errors="replace")[-4000:]


class Done(AssertionError):
    """A kubectl that failed."""


class Plane:
    """A running control plane, seen by whoever a kubeconfig is of."""

    def __init__(self, directory: Path, kubeconfig: Path, kubectl: Path) -> None:
        self.directory, self.kubeconfig, self._kubectl = directory, kubeconfig, kubectl

    def seen_by(self, kubeconfig: str | Path) -> Plane:
        """The same for somebody else: a kubeconfig, as a file or as its text."""
        if isinstance(kubeconfig, str):
            text, kubeconfig = kubeconfig, Path(tempfile.mkstemp(suffix=".kubeconfig", dir=self.directory)[1])
            kubeconfig.write_text(text)
        return Plane(self.directory, kubeconfig, self._kubectl)

    def try_kubectl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever comes of it."""
        argv = [os.fspath(self._kubectl), f"--kubeconfig={self.kubeconfig}"]
        argv += [f"--cache-dir={self.directory}/cache", *arguments]
        return subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=CALL_TIMEOUT, check=False
        )

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl; what it wrote. Raises Done when it fails."""
        done = self.try_kubectl(*arguments, stdin=stdin)
        if done.returncode != 0:
            raise Done(f"kubectl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    def refused(self, *arguments: str, stdin: str = "") -> str:
        """Run a kubectl that must fail; what it said."""
        done = self.try_kubectl(*arguments, stdin=stdin)
        assert done.returncode != 0, f"kubectl {' '.join(arguments)} was let: {done.stdout}"
        return done.stderr

    def apply(self, *objects: Mapping[str, Any] | str) -> None:
        """Apply objects, or a text with some."""
        for one in objects:
            self.kubectl("apply", "-f", "-", stdin=one if isinstance(one, str) else json.dumps(one))

    def json(self, *arguments: str) -> Any:
        """A kubectl command with JSON output, decoded; None when it fails."""
        done = self.try_kubectl(*arguments, "-o", "json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def names(self, kind: str, *arguments: str) -> set[str]:
        """The names of all objects of a kind."""
        return {one["metadata"]["name"] for one in self.json("get", kind, *arguments)["items"]}

    def orlop(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``orlop tenants``."""
        argv = [sys.executable, "-m", "orlop.cli.main", "tenants", *arguments]
        env = {**os.environ, "KUBECONFIG": os.fspath(self.kubeconfig)}
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=CALL_TIMEOUT, check=False, env=env
        )

    def account(self, namespace: str, name: str, *, node: str = "") -> Plane:
        """The same for a service account, by a token of its own, which may be bound to a node."""
        bound = ["--bound-object-kind=Node", f"--bound-object-name={node}"] if node else []
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", *bound).strip()
        document = json.loads(self.kubeconfig.read_text())
        document["users"][0]["user"] = {"token": token}
        return self.seen_by(json.dumps(document))


def _wait(plane: Plane, children: Sequence[Child], *question: str) -> None:
    """Until kubectl gets an answer to the question."""
    limit = time.monotonic() + COMES_TRUE * 2
    while plane.try_kubectl(*question).returncode != 0:
        said = "\n".join(child.said() for child in children)
        assert all(child.process.poll() is None for child in children), said
        assert time.monotonic() < limit, said
        time.sleep(0.2)


@contextlib.contextmanager
def plane() -> Iterator[Plane]:
    """A control plane that answers, until the block ends."""
    built = programs.build(PROGRAMS)
    etcd = tools.debian_packages(["etcd-server"]) / "usr/bin/etcd"
    directory = Path(tempfile.mkdtemp(prefix="orlop-plane-"))
    children: list[Child] = []
    try:
        layout.logs(directory).mkdir()
        certificates.make(directory, [])
        store, peers, port = _free_ports(3)
        for name in ("admin", CONTROLLERS):
            file = layout.kubeconfig(directory, name)
            server = f"https://{layout.CONTROL}:{layout.API_PORT}"
            file.write_text(file.read_text().replace(server, f"https://127.0.0.1:{port}"))
        one = Plane(directory, layout.kubeconfig(directory), built.directory / "kubectl")
        commands = _commands(directory, built.directory, etcd, (store, peers, port))
        for name, argv in commands.items():
            if name == CONTROLLERS:
                # They end when the server does not answer within ten seconds.
                _wait(one, children, "get", "--raw=/readyz")
            children.append(Child(argv, layout.logs(directory) / f"{name}.log"))
        # A controller makes the account: there is one that works.
        _wait(one, children, "get", "serviceaccount", "default")
        yield one
    finally:
        for child in reversed(children):
            child.end(signal.SIGKILL)
        if "ORLOP_TEST_KEEP" not in os.environ:
            shutil.rmtree(directory, ignore_errors=True)


def _commands(
    directory: Path, built: Path, etcd: Path, ports: tuple[int, int, int]
) -> dict[str, list[str | Path]]:
    store, peers, port = ports
    client, peer = f"http://127.0.0.1:{store}", f"http://127.0.0.1:{peers}"
    replaced = {
        "--etcd-servers": client,
        "--advertise-address": "127.0.0.1",
        "--secure-port": str(port),
    }
    server = [flag for flag in control.api_server(directory) if flag.partition("=")[0] not in replaced]
    server += [f"{flag}={value}" for flag, value in replaced.items()]
    # No loopback address can be the one of a Service's endpoint.
    server += ["--bind-address=127.0.0.1", "--endpoint-reconciler-type=none"]
    pki = layout.certificates(directory)
    return {
        "etcd": [
            etcd,
            f"--data-dir={directory}/etcd",
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ],
        "kube-apiserver": [built / "kube-apiserver", *server],
        CONTROLLERS: [
            built / CONTROLLERS,
            f"--kubeconfig={layout.kubeconfig(directory, CONTROLLERS)}",
            "--leader-elect=false",
            f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/accounts.key",
            "--use-service-account-credentials=true",
            "--secure-port=0",
        ],
    }
