"""The daemon's configuration: one TOML file, every key optional, unknown keys refused.

``/etc/orlop/config.toml`` is read unless another file is named. :func:`load` checks types and
ranges and names the key that is wrong. Sizes are MiB where a key ends in ``_mib``, times are
seconds.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from orlop.errors import InvalidArgument, NotFound

DEFAULT_PATH = Path("/etc/orlop/config.toml")

Accelerator = Literal["auto", "kvm", "tcg"]
DefaultHandler = Literal["vm", "process", "auto"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections below."""


class GuestConfig(Section, frozen=True):
    """The kernel and images that a VM starts from; empty paths mean those of ``orlop guest build``."""

    kernel: str = ""
    initrd: str = ""
    image: str = ""


class PoolConfig(Section, frozen=True):
    """Ready VMs kept for the next pods. ``size`` 0 turns the pool off."""

    size: int = 2
    max_memory_mib: int = 2048


class VmConfig(Section, frozen=True):
    """Pods of the handler ``vm``.

    ``default_memory_mib`` and ``default_vcpus`` hold for pods without limits; limits come on
    top of ``base_memory_mib``, which the guest itself needs. ``scratch_mib`` is the size of
    a container's writable layer when nothing else limits it.
    """

    accelerator: Accelerator = "auto"
    qemu: str = "qemu-system-x86_64"
    machine: str = "pc"
    template: bool = True
    base_memory_mib: int = 128
    default_memory_mib: int = 512
    default_vcpus: int = 1
    max_vcpus: int = 8
    max_memory_mib: int = 16384
    scratch_mib: int = 10240
    boot_timeout: float = 90.0
    kvm_probe_timeout: float = 20.0
    guest: GuestConfig = GuestConfig()
    pool: PoolConfig = PoolConfig()


class ProcessConfig(Section, frozen=True):
    """Pods of the handler ``process``. ``runtime`` is "auto", or a runc-compatible command."""

    runtime: str = "auto"
    conmon: str = "conmon"


class ImageConfig(Section, frozen=True):
    """Where images come from. ``registries_conf`` and ``auth_file`` are containers/image files
    (containers-registries.conf(5), containers-auth.json(5)); empty means that library's defaults.
    ``pinned`` are patterns of complete names (``registry.k8s.io/pause:*``) never to be collected."""

    registries_conf: str = ""
    auth_file: str = ""
    policy: str = ""
    max_layer_mib: int = 20480
    max_parallel_pulls: int = 3
    pinned: tuple[str, ...] = ()


class NetworkConfig(Section, frozen=True):
    """Where CNI finds its configuration and plug-ins."""

    conf_dir: str = "/etc/cni/net.d"
    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    timeout: float = 60.0


class StreamingConfig(Section, frozen=True):
    """The server behind Exec, Attach and PortForward. Port 0 picks a free one."""

    address: str = "127.0.0.1"
    port: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    token_ttl: float = 60.0
    idle_timeout: float = 4 * 3600.0


class MetricsConfig(Section, frozen=True):
    """Prometheus endpoint; port 0 turns it off. ``otlp_endpoint`` turns tracing on."""

    address: str = "127.0.0.1"
    port: int = 0
    otlp_endpoint: str = ""


class Config(Section, frozen=True):
    """The whole file. ``root`` survives a reboot, ``state`` does not."""

    socket: str = "/run/orlop/orlop.sock"
    root: str = "/var/lib/orlop"
    state: str = "/run/orlop"
    default_handler: DefaultHandler = "vm"
    cgroup_driver: Literal["cgroupfs", "systemd"] = "cgroupfs"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    vm: VmConfig = VmConfig()
    process: ProcessConfig = ProcessConfig()
    images: ImageConfig = ImageConfig()
    network: NetworkConfig = NetworkConfig()
    streaming: StreamingConfig = StreamingConfig()
    metrics: MetricsConfig = MetricsConfig()

    @property
    def root_dir(self) -> Path:
        """:attr:`root` as a path."""
        return Path(self.root)

    @property
    def state_dir(self) -> Path:
        """:attr:`state` as a path."""
        return Path(self.state)


def load(path: Path | None = None) -> Config:
    """Read the file at ``path``, or the default one if it exists.

    Raises NotFound when a named file is missing, InvalidArgument when it is not valid.
    """
    named = path is not None
    path = path or DEFAULT_PATH
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if named:
            raise NotFound(f"configuration file {path} does not exist") from error
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"configuration file {path} cannot be read: {error}") from error
    try:
        return msgspec.convert(tomllib.loads(text), Config)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidArgument(f"configuration file {path}: {error}") from error
