"""The daemon's configuration: one TOML file, every key optional, unknown keys refused.

``/etc/orlop/config.toml`` is read unless another file is named. Each key's type says what it may be:
numbers have bounds, strings a pattern or a list of choices. :func:`load` names the key that is wrong, its
value and what it may be. Sizes are MiB where a key ends in ``_mib``, times are seconds.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, inspect

from orlop.errors import InvalidArgument, NotFound

DEFAULT_PATH = Path("/etc/orlop/config.toml")

DefaultHandler = Literal["vm", "process", "auto"]

Memory = Annotated[int, Meta(ge=64, le=4 << 20)]
"""MiB, up to 4 TiB."""
Throughput = Annotated[int, Meta(ge=0, le=1 << 20)]
FileSize = Annotated[int, Meta(ge=16, le=16 << 20)]
"""MiB; ext4 ends at 16 TiB."""
Vcpus = Annotated[int, Meta(ge=1, le=255)]
"""The machine type ``pc`` takes 255 at most."""
Timeout = Annotated[float, Meta(ge=1, le=3600)]
Port = Annotated[int, Meta(ge=0, le=65535)]

_PATH = r"\A/[^\0]*\Z"
AbsolutePath = Annotated[str, Meta(pattern=_PATH, description="an absolute path")]
OptionalPath = Annotated[str, Meta(pattern=rf"\A\Z|{_PATH}", description="an absolute path, or empty")]
# What is bound below them has to fit into sockaddr_un.sun_path (107 bytes, see unix(7)): the server's
# socket under a longer name first, a VM's as vms/<12 characters>/machine/agent.sock.
SocketPath = Annotated[
    str, Meta(pattern=_PATH, max_length=100, description="an absolute path of at most 100 characters")
]
StatePath = Annotated[
    str, Meta(pattern=_PATH, max_length=70, description="an absolute path of at most 70 characters")
]
Command = Annotated[str, Meta(pattern=r"\A[^\0\s][^\0]*\Z", description="a command")]
BackendName = Annotated[str, Meta(pattern=r"\A[a-z]*\Z", description="a name, or empty")]
Address = Annotated[str, Meta(pattern=r"\A[\w.:%-]+\Z", description="an IP address or a host name")]
OptionalUrl = Annotated[
    str, Meta(pattern=r"\A\Z|\Ahttps?://\S+\Z", description="an http or https URL, or empty")
]
HandlerName = Annotated[
    str, Meta(pattern=r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z", description="the handler of a RuntimeClass")
]
NodeName = Annotated[
    str,
    Meta(pattern=r"\A[A-Za-z0-9._-]{0,63}\Z", description="a name of at most 63 characters, or empty"),
]
ImagePattern = Annotated[str, Meta(pattern=r"\A\S+\Z", description="a pattern")]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections below."""


S = TypeVar("S", bound=Section)


class GuestConfig(Section, frozen=True):
    """The kernel and images that a VM starts from; empty paths mean those of ``orlop guest build``."""

    kernel: OptionalPath = ""
    initrd: OptionalPath = ""
    image: OptionalPath = ""

    def __post_init__(self) -> None:
        """Raises ValueError when only some of the files are named."""
        named = (self.kernel, self.initrd, self.image)
        if any(named) and not all(named):
            raise ValueError("kernel, initrd and image go together: name all or none")


class PoolConfig(Section, frozen=True):
    """Ready VMs kept for the next pods. ``size`` 0 turns the pool off; up to ``max_size`` are kept where as
    many pods came at once."""

    size: Annotated[int, Meta(ge=0, le=256)] = 2
    max_size: Annotated[int, Meta(ge=0, le=256)] = 10
    max_memory_mib: Annotated[int, Meta(ge=0, le=4 << 20)] = 2048


class VolumeConfig(Section, frozen=True):
    """Where a kubelet's volumes are for pods in VMs: in the guest, or shared from the host.

    An emptyDir on a "disk" is a sparse file of ``empty_dir_mib`` in its directory. Small volumes that only
    the host changes are copied into the guest, and kept in step, up to ``copy_kib``; 0 shares them all.
    ``direct`` is where CSI drivers write down which devices a VM is to mount, "" for nowhere. In and below
    ``sockets`` containers have sockets of their own for the host, and nothing else is shared with it.
    """

    empty_dir: Literal["disk", "share"] = "disk"
    empty_dir_mib: FileSize = 65536
    copy_kib: Annotated[int, Meta(ge=0, le=16384)] = 4096
    direct: OptionalPath = "/run/kata-containers/shared/direct-volumes"
    sockets: tuple[AbsolutePath, ...] = (
        "/var/lib/kubelet/plugins",
        "/var/lib/kubelet/plugins_registry",
        "/var/lib/kubelet/device-plugins",
    )


class IoConfig(Section, frozen=True):
    """How fast a pod's VM may use each disk of the host; 0 is no limit."""

    read_mib_per_second: Throughput = 0
    write_mib_per_second: Throughput = 0
    reads_per_second: Throughput = 0
    writes_per_second: Throughput = 0


class VmConfig(Section, frozen=True):
    """Pods of the handler ``vm``.

    ``default_memory_mib`` and ``default_vcpus`` hold for pods without limits; limits come on
    top of ``base_memory_mib``, which the guest itself needs. ``scratch_mib`` is the size of
    a container's writable layer when nothing else limits it; a pod that takes more than ``pod_disk_mib`` with
    all of its layers and logs is ended, 0 is no bound. With several ``templates`` VMs start from each
    in turn; ``template_lifetime`` is how long one serves, 0 for ever. ``hypervisor`` picks a back end, "" the
    usual one; ``others`` are the keys that only a back end knows, see :func:`backend_section`. ``names`` are
    further names by which a RuntimeClass may ask for the handler.
    """

    names: tuple[HandlerName, ...] = ()
    hypervisor: BackendName = ""
    template: bool = True
    templates: Annotated[int, Meta(ge=1, le=16)] = 1
    template_lifetime: Annotated[float, Meta(ge=0, le=30 * 86400)] = 0.0
    base_memory_mib: Memory = 128
    default_memory_mib: Memory = 512
    default_vcpus: Vcpus = 1
    max_vcpus: Vcpus = 8
    max_memory_mib: Memory = 16384
    scratch_mib: FileSize = 10240
    pod_disk_mib: Annotated[int, Meta(ge=0, le=64 << 20)] = 102400
    boot_timeout: Timeout = 90.0
    unmapped_volumes: Literal["allow", "refuse"] = "allow"
    guest: GuestConfig = GuestConfig()
    pool: PoolConfig = PoolConfig()
    volumes: VolumeConfig = VolumeConfig()
    io: IoConfig = IoConfig()
    others: dict[str, Any] = {}

    def document(self) -> dict[str, Any]:
        """The section as a file has it."""
        found = msgspec.to_builtins(self)
        others = found.pop("others")
        return {**found, **others}

    def __post_init__(self) -> None:
        """Raises ValueError when a default is above its own limit."""
        if self.default_vcpus > self.max_vcpus:
            raise ValueError(f"default_vcpus is {self.default_vcpus}, above max_vcpus ({self.max_vcpus})")
        if self.default_memory_mib > self.max_memory_mib:
            above = f"above max_memory_mib ({self.max_memory_mib})"
            raise ValueError(f"default_memory_mib is {self.default_memory_mib}, {above}")


class ProcessConfig(Section, frozen=True):
    """Pods of the handler ``process``. ``runtime`` is "auto", or a runc-compatible command. ``names`` are
    as in :class:`VmConfig`."""

    names: tuple[HandlerName, ...] = ()
    runtime: Command = "auto"
    conmon: Command = "conmon"


class ImageConfig(Section, frozen=True):
    """Where images come from. ``registries_conf`` and ``auth_file`` are containers/image files
    (containers-registries.conf(5), containers-auth.json(5)); empty means that library's defaults.
    ``pinned`` are patterns of complete names (``registry.k8s.io/pause:*``) never to be collected."""

    registries_conf: OptionalPath = ""
    auth_file: OptionalPath = ""
    policy: OptionalPath = ""
    max_layer_mib: Annotated[int, Meta(ge=1, le=16 << 20)] = 20480
    max_parallel_pulls: Annotated[int, Meta(ge=1, le=64)] = 3
    pinned: tuple[ImagePattern, ...] = ()


class NetworkConfig(Section, frozen=True):
    """Where CNI finds its configuration and plug-ins."""

    conf_dir: AbsolutePath = "/etc/cni/net.d"
    bin_dirs: tuple[AbsolutePath, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    timeout: Timeout = 60.0


class StreamingConfig(Section, frozen=True):
    """The server behind Exec, Attach and PortForward. Port 0 picks a free one."""

    address: Address = "127.0.0.1"
    port: Port = 0
    tls_cert: OptionalPath = ""
    tls_key: OptionalPath = ""
    token_ttl: Timeout = 60.0
    idle_timeout: Annotated[float, Meta(ge=1, le=30 * 86400)] = 4 * 3600.0

    def __post_init__(self) -> None:
        """Raises ValueError when there is a key without its certificate."""
        if self.tls_key and not self.tls_cert:
            raise ValueError("tls_key needs tls_cert: name both, or none")


class MetricsConfig(Section, frozen=True):
    """Prometheus endpoint; port 0 turns it off. ``otlp_endpoint`` turns tracing on."""

    address: Address = "127.0.0.1"
    port: Port = 0
    otlp_endpoint: OptionalUrl = ""


class NriConfig(Section, frozen=True):
    """Plug-ins of the node (NRI): those in ``plugin_dir``, which are started, and those that connect to
    ``socket``. Times are for a plug-in to register, and to answer."""

    enabled: bool = False
    socket: SocketPath = "/var/run/nri/nri.sock"
    plugin_dir: AbsolutePath = "/opt/nri/plugins"
    config_dir: AbsolutePath = "/etc/nri/conf.d"
    registration_timeout: Timeout = 5.0
    request_timeout: Timeout = 2.0


class CsiConfig(Section, frozen=True):
    """Named volumes for a cluster: the CSI driver's socket, and the directory in which a kubelet looks for
    drivers (empty: it is told otherwise). ``node`` is what this machine is called, empty its host name."""

    enabled: bool = False
    socket: SocketPath = "/var/lib/kubelet/plugins/csi.orlop.io/csi.sock"
    registry: OptionalPath = "/var/lib/kubelet/plugins_registry"
    node: NodeName = ""


class Config(Section, frozen=True):
    """The whole file. ``root`` survives a reboot, ``state`` does not."""

    socket: SocketPath = "/run/orlop/orlop.sock"
    root: AbsolutePath = "/var/lib/orlop"
    state: StatePath = "/run/orlop"
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
    nri: NriConfig = NriConfig()
    csi: CsiConfig = CsiConfig()

    def __post_init__(self) -> None:
        """Raises ValueError when a name could mean two handlers."""
        names = [*get_args(DefaultHandler), *self.vm.names, *self.process.names]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"the handler's name {twice[0]} is taken: names in [vm] and [process] are one list"
            )

    @property
    def handler_names(self) -> dict[str, str]:
        """The further names of handlers, and the handler that each means."""
        return dict.fromkeys(self.vm.names, "vm") | dict.fromkeys(self.process.names, "process")

    def document(self) -> dict[str, Any]:
        """What a file would have to say to come to this."""
        return {**msgspec.to_builtins(self), "vm": self.vm.document()}

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
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # some of what it does not take has no error of its own
        raise InvalidArgument(f"configuration file {path}: {error}") from error
    vm = document.get("vm")
    if isinstance(vm, dict):
        known = set(VmConfig.__struct_fields__) - {"others"}
        own = {key: value for key, value in vm.items() if key in known}
        document["vm"] = {**own, "others": {key: vm[key] for key in vm.keys() - known}}
    try:
        return msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        said = _explain(str(error), document, Config)
        raise InvalidArgument(f"configuration file {path}: {said}") from error


def backend_section(vm: VmConfig, name: str, kind: type[S], *, moved: Mapping[str, str]) -> S:
    """The section ``[vm.NAME]``, which only the back end of that name understands.

    ``moved`` says for keys that ``[vm]`` had before what they are called there now. Raises InvalidArgument
    for a key that has moved, or is wrong.
    """
    section = vm.others.get(name, {})
    for old, new in moved.items():
        if old in vm.others and not (old == name and isinstance(section, dict)):
            raise InvalidArgument(f"the key vm.{old} of the configuration is called vm.{name}.{new} now")
    try:
        return msgspec.convert(section, kind)
    except msgspec.ValidationError as error:
        said = _explain(str(error), section, kind, f"vm.{name}")
        raise InvalidArgument(f"the configuration: {said}") from error


def allowed(kind: inspect.Type) -> str:
    """What a key of that type may be, in words: "0 to 65535", "an absolute path"."""
    match kind:
        case inspect.IntType(ge=least, le=most) | inspect.FloatType(ge=least, le=most):
            return f"{least} to {most}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=choices):
            *first, last = [json.dumps(one) for one in choices]
            return f"{', '.join(first)} or {last}"
        case inspect.VarTupleType(item_type=item):
            return f"a list, each {allowed(item)}"
        case inspect.Metadata(extra_json_schema={"description": str(words)}):
            return words
    return "a table"


def _explain(message: str, document: dict[str, Any], root: type[Section], prefix: str = "") -> str:
    """The words of a ValidationError as a sentence with key, value and what the key may be.

    They end with the place: ``$.vm.pool.size``, ``$.network.bin_dirs[1]``. ``document`` is what ``root``
    was to be made of, below the key ``prefix``.
    """
    what, _, place = message.partition(" - at `$")
    below = place.strip("`.")
    key = ".".join(part for part in (prefix, below) if part)
    if not below or what.startswith("Object contains unknown field"):
        unknown = re.search(r"`(.*)`", what)
        return f"there is no key {key}{'.' if key else ''}{unknown[1]}" if unknown else message
    kind: inspect.Type = inspect.type_info(root)
    value: Any = document
    for name, index in re.findall(r"([a-z_]+)|\[(\d+)\]", below):
        if isinstance(kind, inspect.StructType):
            kind = next(field.type for field in kind.fields if field.encode_name == name)
            value = value[name]
        elif isinstance(kind, inspect.VarTupleType):
            kind, value = kind.item_type, value[int(index)]
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        # The words of a section's own __post_init__.
        return f"[{key}] {what}"
    words = {inspect.IntType: "a whole number from ", inspect.FloatType: "a number from "}.get(type(kind), "")
    return f"{key} is {json.dumps(value, default=str)}, and must be {words}{allowed(kind)}"
