"""The systems measured: each a CRI socket that a private daemon serves from a directory of its own."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance import tools

from bench import peers
from bench.client import Caller, Client
from bench.podman import Podman
from orlop.cri.api import runtime_v1_pb2 as pb

CNI_BIN = ("/opt/cni/bin", "/usr/lib/cni")
REGISTRY = "127.0.0.1:15988"
SOURCE = Path(__file__).resolve().parent.parent / "src"


@dataclass(frozen=True)
class System:
    """How to start one system.

    ``prepare`` writes its files and returns its command line; ``programs`` says where more of its
    programs are than those beside the daemon; ``client`` makes what takes CRI calls from its socket;
    after its round it is left alone for ``settle`` seconds.
    """

    name: str
    handler: str
    prepare: Callable[[Path, str, str], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    programs: Callable[[], Path] | None = None
    settle: float = 0.5
    client: Callable[[str], Caller] = Client


@dataclass(frozen=True)
class Running:
    """A system that serves: its daemon's pid and its socket."""

    system: System
    pid: int
    socket: str

    def connect(self) -> Caller:
        """A client of its own for the caller, who closes it."""
        return self.system.client(self.socket)


def write_network(directory: Path, name: str, number: int) -> None:
    """A bridge network of the system's own, so that all of them pay for the same plug-ins."""
    directory.mkdir(parents=True, exist_ok=True)
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": f"10.{210 + number}.0.0/16"}]],
        "dataDir": os.fspath(directory / "leases"),
    }
    bridge = {"type": "bridge", "bridge": f"bench{number}", "isGateway": True, "ipMasq": False, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    conflist = {"cniVersion": "1.0.0", "name": f"bench-{name}", "plugins": [bridge, portmap]}
    (directory / "10-bench.conflist").write_text(json.dumps(conflist))


def kept(source: Path) -> Path:
    """Where guest image and template of the code in ``source`` are kept between runs."""
    name = "bench" if source == SOURCE else f"bench-{hashlib.sha256(os.fsencode(source)).hexdigest()[:12]}"
    return tools.cache_dir() / name


def borrow(root: Path, source: Path) -> None:
    """Let a daemon below ``root`` start from the benchmark's own guest image and template."""
    made = kept(source)
    made.mkdir(exist_ok=True)
    config = made / "config.toml"
    config.write_text(f'root = "{made}"\n')
    build: list[str | Path] = [sys.executable, "-m", "orlop.cli.main", "guest", "build", "--config", config]
    environment = os.environ | {"PYTHONPATH": os.fspath(source)}
    subprocess.run(build, check=True, capture_output=True, env=environment)
    root.mkdir(exist_ok=True)
    (root / "guest").symlink_to(made / "guest")
    if (made / "hypervisor").exists():
        subprocess.run(["cp", "-a", "--sparse=always", made / "hypervisor", root], check=True)


def keep(root: Path) -> None:
    """Keep the template that a daemon below ``root`` has built for the next one."""
    if (root / "guest").is_symlink() and (root / "hypervisor").exists():
        made = (root / "guest").readlink().parent / "hypervisor"
        subprocess.run(["rm", "-rf", made], check=True)
        made.mkdir()
        # A machine's own files, and the record of its user, come and go while they are copied.
        passing = ("boot-", "ids")
        lasting = [entry for entry in (root / "hypervisor").iterdir() if not entry.name.startswith(passing)]
        subprocess.run(["cp", "-a", "--sparse=always", *lasting, made], check=True)


def _orlop(extra: str, source: Path) -> Callable[[Path, str, str], list[str]]:
    def prepare(directory: Path, registry: str, registries_conf: str) -> list[str]:
        (directory / "registries.conf").write_text(registries_conf)
        (directory / "config.toml").write_text(
            f'socket = "{directory}/cri.sock"\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
            f'[images]\nregistries_conf = "{directory}/registries.conf"\n'
            f'[network]\nconf_dir = "{directory}/cni"\n{extra}'
        )
        borrow(directory / "root", source)
        return [sys.executable, "-m", "orlop.daemon", "--config", f"{directory}/config.toml"]

    return prepare


def _hosts(directory: Path, registry: str) -> Path:
    """containerd's hosts directory that sends registry.k8s.io to the loopback registry."""
    hosts = directory / "certs.d" / "registry.k8s.io"
    hosts.mkdir(parents=True, exist_ok=True)
    (hosts / "hosts.toml").write_text(
        f'server = "http://{registry}/v2/registry.k8s.io"\n'
        f'[host."http://{registry}/v2/registry.k8s.io"]\n'
        'capabilities = ["pull", "resolve"]\noverride_path = true\n'
    )
    return hosts.parent


def _runtimes(prefix: str) -> str:
    return "".join(
        f'[{prefix}.runtimes.{name}]\nruntime_type = "{kind}"\n' + options
        for name, kind, options in (
            ("runc", "io.containerd.runc.v2", ""),
            ("crun", "io.containerd.runc.v2", f'[{prefix}.runtimes.crun.options]\nBinaryName = "crun"\n'),
            ("runsc", "io.containerd.runsc.v1", ""),
        )
    )


def _containerd(directory: Path, registry: str, _conf: str) -> list[str]:
    images, runtime = "plugins.'io.containerd.cri.v1.images'", "plugins.'io.containerd.cri.v1.runtime'"
    (directory / "config.toml").write_text(
        f'version = 3\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f'[grpc]\naddress = "{directory}/cri.sock"\n[ttrpc]\naddress = "{directory}/ttrpc.sock"\n'
        f'[{images}]\nsnapshotter = "overlayfs"\n'
        f'[{images}.pinned_images]\nsandbox = "registry.k8s.io/pause:3.10"\n'
        f'[{images}.registry]\nconfig_path = "{_hosts(directory, registry)}"\n'
        f'[{runtime}]\nrestrict_oom_score_adj = true\n[{runtime}.containerd]\ndefault_runtime_name = "runc"\n'
        f"{_runtimes(f'{runtime}.containerd')}"
        f'[{runtime}.cni]\nbin_dirs = {json.dumps(CNI_BIN)}\nconf_dir = "{directory}/cni"\n'
    )
    return [os.fspath(peers.containerd() / "containerd"), "--config", f"{directory}/config.toml"]


def _debian_containerd(directory: Path, registry: str, _conf: str) -> list[str]:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    bin_dir = next((path for path in CNI_BIN if (Path(path) / "bridge").exists()), CNI_BIN[0])
    (directory / "config.toml").write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f'[grpc]\naddress = "{directory}/cri.sock"\n[ttrpc]\naddress = "{directory}/ttrpc.sock"\n'
        f'[{cri}]\nrestrict_oom_score_adj = true\nsandbox_image = "registry.k8s.io/pause:3.10"\n'
        f'[{cri}.registry]\nconfig_path = "{_hosts(directory, registry)}"\n'
        f'[{cri}.containerd]\ndefault_runtime_name = "runc"\n{_runtimes(f"{cri}.containerd")}'
        f'[{cri}.cni]\nbin_dir = "{bin_dir}"\nconf_dir = "{directory}/cni"\n'
    )
    return _hide_hybrid(
        [os.fspath(peers.debian_containerd() / "containerd"), "--config", f"{directory}/config.toml"]
    )


def _toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Tables whose values are written alike in JSON and TOML."""
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


def _podman(directory: Path, _registry: str, registries_conf: str) -> list[str]:
    root = peers.debian_podman()
    libraries = os.pathsep.join(os.fspath(root / part / "x86_64-linux-gnu") for part in ("usr/lib", "lib"))
    (directory / "registries.conf").write_text(registries_conf)
    containers: dict[str, object] = {
        "log_driver": "k8s-file",
        "seccomp_profile": f"{root}/usr/share/containers/seccomp.json",
        # Debian's podman asks for more than a root without CAP_SYS_RESOURCE may give.
        "default_ulimits": ["nofile=1024:1024", "nproc=4096:4096"],
    }
    network: dict[str, object] = {
        "network_backend": "cni",
        "cni_plugin_dirs": CNI_BIN,
        "network_config_dir": f"{directory}/cni",
        "default_network": "bench-podman-crun",
    }
    engine: dict[str, object] = {
        "runtime": "crun",
        "cgroup_manager": "cgroupfs",
        "events_logger": "file",
        "tmp_dir": f"{directory}/tmp",
        "infra_image": "registry.k8s.io/pause:3.10",
        "conmon_path": [f"{root}/usr/bin/conmon"],
        # What conmon starts when a container ends is podman again.
        "conmon_env_vars": [f"PATH={peers.search_path(root / 'usr/bin')}", f"LD_LIBRARY_PATH={libraries}"],
        # Seconds for which what watched an exec stays in the pod's cgroup, whose removal waits for it.
        "exit_command_delay": 0,
    }
    storage = {"driver": "overlay", "graphroot": f"{directory}/root", "runroot": f"{directory}/run"}
    tables = {"containers": containers, "network": network, "engine": engine}
    (directory / "storage.conf").write_text(_toml({"storage": storage}))
    (directory / "containers.conf").write_text(
        _toml(tables) + f'[engine.runtimes]\ncrun = ["{root}/usr/bin/crun"]\n'
    )
    variables = {
        "LD_LIBRARY_PATH": libraries,
        "CONTAINERS_CONF": f"{directory}/containers.conf",
        "CONTAINERS_REGISTRIES_CONF": f"{directory}/registries.conf",
        "CONTAINERS_STORAGE_CONF": f"{directory}/storage.conf",
    }
    service = [f"{root}/usr/bin/podman", "system", "service", "--time=0", f"unix://{directory}/cri.sock"]
    return _hide_hybrid(["env", *(f"{name}={value}" for name, value in variables.items()), *service])


def _hide_hybrid(command: list[str]) -> list[str]:
    """crun refuses a host with version 1 cgroups that has version 2 mounted beside them."""
    unified = Path("/sys/fs/cgroup/unified")
    if not unified.is_mount():
        return command
    return ["unshare", "--mount", "sh", "-c", f'umount {unified}; exec "$@"', "sh", *command]


def _of_checkout(prefix: str, source: Path) -> list[System]:
    """Orlop's systems as the code in ``source`` has them."""
    python = {"PYTHONPATH": os.fspath(source)}
    pooled, alone = "[vm.pool]\nsize = 2\n", "[vm.pool]\nsize = 0\n"
    cold = f"[vm]\ntemplate = false\n{alone}"
    return [
        System(f"{prefix}-vm-pool", "vm", _orlop(pooled, source), python, settle=5.0),
        System(f"{prefix}-vm-template", "vm", _orlop(alone, source), python),
        System(f"{prefix}-vm-cold", "vm", _orlop(cold, source), python),
        System(f"{prefix}-process", "process", _orlop(alone, source), python),
    ]


def known(before: Path | None = None) -> dict[str, System]:
    """Every system by name; with ``before``, another checkout of Orlop, that one's as well.

    Making a peer's binaries waits until it is started.
    """
    return {
        system.name: system
        for system in (
            *_of_checkout("orlop", SOURCE),
            *(_of_checkout("before", before.resolve() / "src") if before else ()),
            System("containerd-runc", "runc", _containerd),
            System("containerd-gvisor", "runsc", _containerd, programs=peers.gvisor),
            System("containerd-1.6-runc", "runc", _debian_containerd),
            System("containerd-1.6-crun", "crun", _debian_containerd),
            System("podman-crun", "", _podman, client=Podman),
        )
    }


@contextmanager
def running(system: System, directory: Path, number: int, registry: str, conf: str) -> Iterator[Running]:
    """The system's daemon, serving, until the block ends. Raises RuntimeError with its last words."""
    directory.mkdir(parents=True)
    write_network(directory / "cni", system.name, number)
    command = system.prepare(directory, registry, conf)
    programs = [Path(command[0]).parent, *([system.programs()] if system.programs else [])]
    environment = {**os.environ, **system.environment, "PATH": peers.search_path(*programs)}
    log = directory / "daemon.log"
    with log.open("wb") as output:
        # A session of its own: an interrupt from the terminal must leave it to end its pods.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    socket_path = f"{directory}/cri.sock"
    try:
        _wait_for(system.name, process, socket_path, log)
        _wait_until_ready(system.client(socket_path))
        if "cold" not in system.name:
            keep(directory / "root")
        yield Running(system, process.pid, socket_path)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        subprocess.run(["ip", "link", "delete", f"bench{number}"], capture_output=True, check=False)


def _wait_until_ready(client: Caller) -> None:
    """Wait until all conditions hold: Orlop may build a template first."""
    try:
        deadline = time.monotonic() + 180
        while True:
            conditions = client.call("Status", pb.StatusRequest()).status.conditions
            bad = [one.message for one in conditions if not one.status and one.type.endswith("Ready")]
            if not bad:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"not ready: {'; '.join(bad)}")
            time.sleep(0.5)
    finally:
        client.close()


def _wait_for(name: str, process: subprocess.Popen[bytes], path: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
                return
            except OSError:
                time.sleep(0.05)
    last = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise RuntimeError(f"{name} does not serve {path}: {' / '.join(last)}")
