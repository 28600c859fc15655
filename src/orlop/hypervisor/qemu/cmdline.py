"""QEMU's command line, from small values: one function per group of switches.

A clone has to have exactly the devices of the machine that was saved, at the same addresses; what may
differ is what lies behind them (files, sockets, taps, directories). :func:`machine_key` says which
arguments a saved state belongs to. Options are explained in qemu(1).

QEMU runs in a jail that shows it no file of the host: it inherits all as open descriptors. What its
block layer opens is named by :func:`descriptor_set`, anything else by :func:`inherited`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from orlop.hypervisor.jail.enter import PROC
from orlop.hypervisor.qemu import addresses, bays
from orlop.hypervisor.qemu.bays import SCSI_BUS, Bay
from orlop.linux import architecture

MIB = 1 << 20
AGENT_PORT_ID = "agentport"
CONSOLE_ID = "console"
CONSOLE_BYTES = 64 << 10
MAX_LUN = 16383
MEMORY_DEVICE = "vmem0"
SHARE = "/share"
"""Where the jail shows the directory that the guest can mount."""
_ROOT_SET = 0
_OWN_FILTER = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_KERNEL_ARGUMENTS = (
    # Where the guest finds its root and the line to the daemon.
    f"orlop.root={addresses.disk(addresses.ROOT_LUN, 1, kept=True)[0]}",
    f"orlop.channel={addresses.CHANNEL}",
    "panic=-1",
    "random.trust_cpu=on",
    "cgroup_no_v1=all",
    "psi=1",
    # Nothing may wake a guest that has nothing to do: these would, several times a second.
    "nowatchdog",
    "sysctl.vm.compaction_proactiveness=0",
    "sysctl.vm.stat_interval=60",
    # All but AppArmor, SELinux, Smack and TOMOYO, which have no policy here and would only take time.
    "lsm=landlock,lockdown,yama,integrity,bpf",
    # A huge page that is touched once costs a clone all of it.
    "transparent_hugepage=madvise",
    # Memory that could be plugged above 4 GiB would reserve 64 MiB of bounce buffers that no device needs.
    "swiotlb=noforce",
    # Plugged memory is used at once; most of it such that it can be taken away again.
    "memhp_default_state=online",
    "memory_hotplug.online_policy=auto-movable",
)


def inherited(descriptor: int) -> str:
    """The name by which QEMU opens a descriptor that it has inherited."""
    return f"{PROC}/self/fd/{descriptor}"


def descriptor_set(number: int) -> str:
    """The name by which QEMU's block layer opens a file that it was given (QMP ``add-fd``)."""
    return f"/dev/fdset/{number}"


class Network(msgspec.Struct, frozen=True):
    """An open tap that QEMU inherits under this descriptor number."""

    tap_fd: int


class Sockets(msgspec.Struct, frozen=True):
    """Listening sockets that QEMU inherits: nothing has to poll for them to appear."""

    monitor_fd: int
    agent_fd: int


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """``file``, a descriptor, backs the machine's first memory: shared while a template is made, else
    private (copy-on-write). ``max_mib`` is what it can be resized to."""

    size_mib: int
    max_mib: int
    file: int | None = None
    shared: bool = False


class Boot(msgspec.Struct, frozen=True):
    """What a machine that is not restored boots, as descriptors. ``verbose`` has the kernel tell its
    progress."""

    kernel: int
    initrd: int
    verbose: bool = False


class Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that makes up a command line. ``boot`` None means to wait for a saved state; ``image`` is
    the descriptor of the root disk.

    ``code_mib`` is what the emulator may keep of translated code: too little, and it translates
    the same code over and over; all it uses is memory that a clone does not share. ``own_filter`` has QEMU
    forbid itself what it knows to be of no use to it, where the jail does not forbid more."""

    program: str
    name: str
    machine: str
    accelerator: str
    cpu: str
    memory: Memory
    vcpus: int
    max_vcpus: int
    image: int
    sockets: Sockets
    network: Network
    bays: tuple[Bay, ...] = ()
    boot: Boot | None = None
    code_mib: int = 0
    own_filter: bool = False


def render(arguments: Arguments) -> list[str]:
    """The whole command line."""
    return [
        arguments.program,
        *_process(arguments),
        *_machine(arguments),
        *_memory(arguments.memory),
        *_console(),
        *_channels(arguments.sockets),
        *_disks(arguments.image),
        *bays.arguments(arguments.bays),
        *_network(arguments.network),
        *_share(),
        *_small_devices(),
        *(_boot(arguments.boot) if arguments.boot else ("-incoming", "defer")),
    ]


def machine_key(arguments: Arguments) -> str:
    """What of the command line a saved state depends on, as one line of text."""
    neutral = msgspec.structs.replace(
        arguments,
        name="",
        image=3,
        sockets=Sockets(4, 5),
        network=Network(6),
        memory=msgspec.structs.replace(arguments.memory, file=7, shared=False),
        code_mib=0,
        own_filter=False,
        boot=Boot(8, 9),
    )
    return " ".join(render(neutral))


def _process(arguments: Arguments) -> Sequence[str]:
    return (
        # The jail becomes QEMU through a descriptor, of which the kernel makes a poor name.
        *("-name", f"{_escape(arguments.name)},process={Path(arguments.program).name},debug-threads=on"),
        "-no-user-config",
        "-nodefaults",
        *("-display", "none"),
        *(("-sandbox", _OWN_FILTER) if arguments.own_filter else ()),
        # A guest that went down stays until its console was read; see QemuMachine.
        *("-action", "reboot=shutdown,shutdown=pause"),
    )


def _machine(arguments: Arguments) -> Sequence[str]:
    accelerators = {"tcg": f"tcg,thread=multi,tb-size={arguments.code_mib}", "kvm": "kvm"}
    options = "memory-backend=mem0,graphics=off,usb=off,vmport=off,hpet=off,dump-guest-core=off,mem-merge=off"
    return (
        *("-machine", f"{arguments.machine},{options}"),
        *("-accel", accelerators[arguments.accelerator]),
        *("-cpu", arguments.cpu),
        *("-smp", f"{arguments.vcpus},maxcpus={max(arguments.max_vcpus, arguments.vcpus)}"),
        *("-rtc", "base=utc"),
    )


def _memory(memory: Memory) -> Sequence[str]:
    size = f"size={memory.size_mib}M"
    if memory.file is None:
        backend = f"memory-backend-ram,id=mem0,{size}"
    else:
        share = "on" if memory.shared else "off"
        backend = f"memory-backend-file,id=mem0,{size},mem-path={inherited(memory.file)},share={share}"
    pluggable = memory.max_mib - memory.size_mib
    if pluggable <= 0:
        return ("-m", size, "-object", backend)
    return (
        *("-m", f"{size},maxmem={memory.max_mib}M"),
        *("-object", backend),
        *("-object", f"memory-backend-ram,id=mem1,size={pluggable}M,reserve=off"),
        *("-device", f"virtio-mem-pci,id={MEMORY_DEVICE},memdev=mem1,node=0,requested-size=0,addr=0x8"),
    )


def _console() -> Sequence[str]:
    return (
        *("-chardev", f"ringbuf,id={CONSOLE_ID},size={CONSOLE_BYTES}"),
        *("-serial", f"chardev:{CONSOLE_ID}"),
    )


def _channels(sockets: Sockets) -> Sequence[str]:
    return (
        *("-chardev", f"socket,id=qmp,fd={sockets.monitor_fd},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=agent,fd={sockets.agent_fd},server=on,wait=off"),
        *("-device", "virtio-serial-pci,id=serial0,max_ports=2,disable-legacy=on,addr=0x3"),
        *(
            "-device",
            f"virtserialport,bus=serial0.0,id={AGENT_PORT_ID},chardev=agent,name={addresses.CHANNEL_NAME}",
        ),
    )


def _disks(image: int) -> Sequence[str]:
    return (
        *("-device", "virtio-scsi-pci,id=scsi0,num_queues=1,disable-legacy=on,addr=0x4"),
        *("-add-fd", f"fd={image},set={_ROOT_SET}"),
        *("-blockdev", f"driver=file,node-name=root,filename={descriptor_set(_ROOT_SET)},read-only=on"),
        *("-device", f"scsi-hd,bus={SCSI_BUS},channel=0,scsi-id=0,lun={addresses.ROOT_LUN},drive=root"),
    )


def _network(network: Network) -> Sequence[str]:
    # A restored guest has nothing to announce: it gets another address at once.
    options = f"romfile=,disable-legacy=on,guest_announce=off,addr={addresses.NETWORK_SLOT:#x}"
    return (
        *("-netdev", f"tap,id=net0,fd={network.tap_fd},vhost=off"),
        *("-device", f"virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,{options}"),
    )


def _share() -> Sequence[str]:
    # The guest keeps the owners of files, so QEMU has to set them: no user mapping.
    return (
        *("-fsdev", f"local,id=share0,path={SHARE},security_model=none,multidevs=remap"),
        *(
            "-device",
            f"virtio-9p-pci,fsdev=share0,mount_tag={addresses.SHARE_TAG},disable-legacy=on,addr=0x6",
        ),
    )


def _small_devices() -> Sequence[str]:
    return (
        *("-object", "rng-builtin,id=rng0"),
        *("-device", "virtio-rng-pci,rng=rng0,disable-legacy=on,addr=0x7"),
        # The guest's kernel tells of its panic before it reboots.
        *("-device", "pvpanic-pci,addr=0x9"),
    )


def _boot(boot: Boot) -> Sequence[str]:
    own = architecture.own()
    words = [f"console={own.console}", *own.kernel_arguments, *_KERNEL_ARGUMENTS]
    if not boot.verbose:
        words.append("quiet")
    return (
        *("-kernel", inherited(boot.kernel)),
        *("-initrd", inherited(boot.initrd)),
        *("-append", " ".join(words)),
    )


def _escape(value: str) -> str:
    """A comma inside a value is written twice."""
    return value.replace(",", ",,")
