"""Messages: requests with their replies, events.

A request class knows its operation (``op``) and, through its base ``Request[Reply]``, the type of
its reply, so a client writes ``reply = await call(Stats())`` and the type checker knows the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args

from orlop.linux.usage import Usage
from orlop.wire.codec import Length, Range, decode, dumps, encode, loads
from orlop.wire.statistics import ContainerUsage, VolumeFill
from orlop.wire.values import (
    NO_STREAMS,
    Arguments,
    Below,
    BoundSocket,
    Cells,
    Container,
    ContainerState,
    Environment,
    ExecUser,
    Exit,
    FileSystem,
    GuestLimits,
    Id,
    Interface,
    Name,
    PluggedDisk,
    ShownSocket,
    SignalNumber,
    StreamId,
    StreamOffsets,
    Streams,
    Text,
    UserId,
    VolumeEntry,
)

MAX_BOUND = 64
"""Sockets of containers in one volume that are the host's as well."""

MAX_SHOWN = 64
"""Sockets of the host in the directories of one pod."""

MAX_FETCH = 64 << 10
"""Bytes that one :class:`Fetch` brings."""

R = TypeVar("R")

Code = Literal[
    "invalid", "not_found", "exists", "failed_precondition", "exec_failed", "unavailable", "internal",
    "unknown_op",
]  # fmt: skip


class Refused(Exception):
    """A request failed in the guest; ``code`` is one of :data:`Code`, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Request(Generic[R]):
    """Base of all requests."""

    op: ClassVar[str]

    @classmethod
    def reply_type(cls) -> Any:
        """The dataclass of the reply."""
        return get_args(cls.__dict__["__orig_bases__"][0])[0]


@dataclass(frozen=True, kw_only=True)
class Done:
    """Nothing to say but that it was done."""


@dataclass(frozen=True, kw_only=True)
class Ping(Request[Done]):
    """Is anybody there?"""

    op: ClassVar[str] = "ping"


@dataclass(frozen=True, kw_only=True)
class SetupReply:
    """What the guest is: its kernel's release."""

    kernel: str


@dataclass(frozen=True, kw_only=True)
class Setup(Request[SetupReply]):
    """Make this clone one pod's own. While there is no container, it may be sent again and replaces all.

    ``clock`` is the wall clock to set; ``entropy`` seeds the random number generator;
    ``machine_id`` (32 hex digits) replaces the template's.
    ``resolv_conf`` and ``hosts`` are the files' text. ``share`` is where the host's directory is found.
    """

    op: ClassVar[str] = "setup"
    hostname: Annotated[str, Length(1, 64)]
    share: Annotated[str, Length(0, 64)] = ""
    clock: int = 0
    entropy: Annotated[bytes, Length(0, 4096)] = b""
    machine_id: Annotated[str, Length(0, 64)] = ""
    interfaces: Annotated[tuple[Interface, ...], Length(0, 16)] = ()
    resolv_conf: Text = ""
    hosts: Text = ""
    sysctls: Annotated[tuple[tuple[Name, Annotated[str, Length(0, 4096)]], ...], Length(0, 256)] = ()


@dataclass(frozen=True, kw_only=True)
class ClockReply:
    """The guest's time, after the correction."""

    time: Annotated[int, Range(0, (1 << 63) - 1)]


@dataclass(frozen=True, kw_only=True)
class Clock(Request[ClockReply]):
    """What time is it? With ``shift`` (nanoseconds), move the wall clock first: at once with ``step``, else
    so slowly that no program sees it jump."""

    op: ClassVar[str] = "clock"
    shift: Annotated[int, Range(-(1 << 62), 1 << 62)] = 0
    step: bool = False


@dataclass(frozen=True, kw_only=True)
class Created:
    """The container waits at its gate. ``uid``, ``gid`` and ``groups`` are who it will run as."""

    uid: UserId
    gid: UserId
    groups: tuple[UserId, ...]


@dataclass(frozen=True, kw_only=True)
class Create(Request[Created]):
    """Make a container up to the point where only exec is left. All or nothing.

    ``exec_failed`` when the executable is missing, ``invalid`` for an unknown user and the like.
    """

    op: ClassVar[str] = "create"
    container: Container


@dataclass(frozen=True, kw_only=True)
class Start(Request[Done]):
    """Open the gate; answers after exec succeeded, or ``exec_failed``."""

    op: ClassVar[str] = "start"
    id: Id


@dataclass(frozen=True, kw_only=True)
class Signal(Request[Done]):
    """Signal a container's first process, all of its processes, or (``exec_id``) one exec.

    A process that has ended is not an error.
    """

    op: ClassVar[str] = "signal"
    id: Id
    signal: SignalNumber
    all: bool = False
    exec_id: Annotated[str, Length(0, 128)] = ""


@dataclass(frozen=True, kw_only=True)
class Delete(Request[Done]):
    """Kill what runs, unmount, let go of the disks only it used. Idempotent."""

    op: ClassVar[str] = "delete"
    id: Id


@dataclass(frozen=True, kw_only=True)
class Update(Request[Done]):
    """Change limits of a container."""

    op: ClassVar[str] = "update"
    id: Id
    resources: GuestLimits


@dataclass(frozen=True, kw_only=True)
class Freeze(Request[Done]):
    """Stop all processes of a running container where they are, or let them go on. Idempotent.

    Answers when all of them stand still. ``unavailable`` when one does not, and then all go on.
    """

    op: ClassVar[str] = "freeze"
    id: Id
    frozen: bool


@dataclass(frozen=True, kw_only=True)
class Exec(Request[Done]):
    """Run one more process in a running container, with its security, environment and directory.

    ``env``, ``cwd`` and ``user`` are instead of the container's where they are given.
    Answers after exec succeeded. The exit comes as :class:`ExecExited`.
    """

    op: ClassVar[str] = "exec"
    id: Id
    container_id: Id
    args: Arguments
    tty: bool = False
    env: Environment = ()
    cwd: Annotated[str, Length(0, 4096)] = ""
    user: ExecUser | None = None
    streams: Streams = NO_STREAMS


@dataclass(frozen=True, kw_only=True)
class Resize(Request[Done]):
    """Set the size of a terminal, in character cells, of a container or of an exec."""

    op: ClassVar[str] = "resize"
    id: Id
    exec_id: Annotated[str, Length(0, 128)] = ""
    width: Cells
    height: Cells


@dataclass(frozen=True, kw_only=True)
class StatsReply:
    """``pod`` sums all containers; ``system_*`` are the guest's own figures (bytes)."""

    pod: Usage
    containers: tuple[ContainerUsage, ...] = ()
    system_memory_total: int = 0
    system_memory_available: int = 0
    volumes: Annotated[tuple[VolumeFill, ...], Length(0, 1024)] = ()


@dataclass(frozen=True, kw_only=True)
class Stats(Request[StatsReply]):
    """Measure containers; with ``full`` limits, disks, open files too; with ``volumes`` those on disks."""

    op: ClassVar[str] = "stats"
    full: bool = False
    volumes: bool = False


@dataclass(frozen=True, kw_only=True)
class Connect(Request[Done]):
    """Connect ``stream`` (both directions) to a TCP port on 127.0.0.1, or ::1 if that refuses."""

    op: ClassVar[str] = "connect"
    stream: Annotated[int, Range(1, (1 << 24) - 1)]
    port: Annotated[int, Range(1, 65535)]


@dataclass(frozen=True, kw_only=True)
class Accept(Request[Done]):
    """Join the one who made this :class:`Called` to ``stream`` (both directions), or with 0 hang up.

    ``not_found`` when its container has gone.
    """

    op: ClassVar[str] = "accept"
    call: int
    stream: StreamId = 0


@dataclass(frozen=True, kw_only=True)
class Dial(Request[Done]):
    """Connect ``stream`` (both directions) to the socket ``name`` in the root of a volume that is held.

    ``not_found`` when there is none, ``failed_precondition`` when nobody listens, ``unavailable`` when who
    does has no time now.
    """

    op: ClassVar[str] = "dial"
    id: Id
    name: Annotated[str, Length(1, 255)]
    stream: Annotated[int, Range(1, (1 << 24) - 1)]


@dataclass(frozen=True, kw_only=True)
class Show(Request[Done]):
    """Have these sockets of the host, and no others, in a directory, until the next such request for it.

    It is ``share``, which the container ``id`` is going to mount or has mounted from the host's share, or
    with "" the volume ``id``. What is not there, or there already, is left out. Who connects is told of as
    :class:`Called`, whose ``socket`` is the name, for a share with that and a slash before it. Idempotent.
    """

    op: ClassVar[str] = "show"
    id: Id
    share: Annotated[str, Length(0, 31)] = ""
    sockets: Annotated[tuple[ShownSocket, ...], Length(0, MAX_SHOWN)] = ()


@dataclass(frozen=True, kw_only=True)
class State:
    """All that outlives a daemon. Execs do not: :class:`Resume` kills them. ``clock`` is the guest's time."""

    clock: int = 0
    containers: tuple[ContainerState, ...] = ()
    streams: Annotated[tuple[StreamOffsets, ...], Length(0, 65536)] = ()


@dataclass(frozen=True, kw_only=True)
class Dump(Request[State]):
    """What runs here? For a daemon that was restarted."""

    op: ClassVar[str] = "dump"


@dataclass(frozen=True, kw_only=True)
class Resume(Request[Done]):
    """Begin to send. Each pair is a stream and the offset it goes on from; streams not named are reset.

    Execs that an earlier daemon started are killed: nobody waits for them any more.
    """

    op: ClassVar[str] = "resume"
    streams: Annotated[tuple[tuple[StreamId, int], ...], Length(0, 65536)] = ()


@dataclass(frozen=True, kw_only=True)
class Prepare(Request[Done]):
    """Mount the empty disk of a container that is to come, whose ``scratch`` it is then."""

    op: ClassVar[str] = "prepare"
    disk: PluggedDisk


@dataclass(frozen=True, kw_only=True)
class Hold(Request[Done]):
    """Have a volume that containers of the pod can mount, until the VM ends. Idempotent.

    It is on ``disk``, which holds ext4 and outlives the VM, or in memory, of ``size`` bytes (0: the kernel's
    default). ``directories`` are made where they are missing; the first is the volume's root. With
    ``file_system`` that is what is on the disk, which has ``size`` bytes by now: it takes all of them. With
    ``listens`` the host hears of the sockets in its root, see :class:`Listening`.
    """

    op: ClassVar[str] = "hold"
    id: Id
    disk: PluggedDisk | None = None
    file_system: FileSystem | None = None
    size: Annotated[int, Range(0, 1 << 50)] = 0
    listens: bool = False
    directories: Annotated[tuple[VolumeEntry, ...], Length(1, 1024)]


@dataclass(frozen=True, kw_only=True)
class Fill(Request[Done]):
    """Bring a small volume to this content, and none else; it is made if it is new.

    ``entries`` come with those above them first; with ``more`` others follow in a further request, and
    nothing is done before the last. Links change at once, after all that they may lead to is there and
    before anything goes. A file that changes is another file then, or with ``in_place`` the same.
    """

    op: ClassVar[str] = "fill"
    id: Id
    entries: Annotated[tuple[VolumeEntry, ...], Length(0, 4096)] = ()
    more: bool = False
    in_place: bool = False


@dataclass(frozen=True, kw_only=True)
class FillAll(Request[Done]):
    """Do what each of these says, none of them in parts: a message costs a guest more than a volume does."""

    op: ClassVar[str] = "fill_all"
    fills: Annotated[tuple[Fill, ...], Length(1, 1024)]


@dataclass(frozen=True, kw_only=True)
class FetchReply:
    """The end of a file."""

    data: Annotated[bytes, Length(0, MAX_FETCH)] = b""


@dataclass(frozen=True, kw_only=True)
class Fetch(Request[FetchReply]):
    """The last bytes of a file in a volume that was filled."""

    op: ClassVar[str] = "fetch"
    id: Id
    path: Below


@dataclass(frozen=True, kw_only=True)
class Drop(Request[Done]):
    """Forget a volume that was filled and that no container mounts any more. Idempotent."""

    op: ClassVar[str] = "drop"
    id: Id


@dataclass(frozen=True, kw_only=True)
class DropAll(Request[Done]):
    """Forget these, each as :class:`Drop` has it."""

    op: ClassVar[str] = "drop_all"
    ids: Annotated[tuple[Id, ...], Length(1, 1024)]


@dataclass(frozen=True, kw_only=True)
class Flush(Request[Done]):
    """Have all that was written to volumes on disks in their files on the host. Before the machine's end."""

    op: ClassVar[str] = "flush"


@dataclass(frozen=True, kw_only=True)
class Changes(Request[Done]):
    """Tell on ``stream`` what a container has changed, or its ``tree`` of files; answered when that ended."""

    op: ClassVar[str] = "changes"
    id: Id
    stream: StreamId
    form: Literal["names", "layer", "tree"] = "names"


@dataclass(frozen=True, kw_only=True)
class Quiesce(Request[Done]):
    """Get ready to be saved as a template: warm up, freeze the heap, drop caches."""

    op: ClassVar[str] = "quiesce"


@dataclass(frozen=True, kw_only=True)
class OnlineReply:
    """The processors that the guest uses now."""

    cpus: int


@dataclass(frozen=True, kw_only=True)
class Online(Request[OnlineReply]):
    """Bring hot-plugged memory and processors online."""

    op: ClassVar[str] = "online"


@dataclass(frozen=True, kw_only=True)
class ContainerExited:
    """A container's first process ended, and with it the container."""

    op: ClassVar[str] = "container_exited"
    id: Id
    exit: Exit


@dataclass(frozen=True, kw_only=True)
class ExecExited:
    """An exec's process ended. Its streams may still have bytes to read."""

    op: ClassVar[str] = "exec_exited"
    id: Id
    container_id: Id
    exit: Exit


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """The kernel killed a process of this container for lack of memory."""

    op: ClassVar[str] = "out_of_memory"
    id: Id


@dataclass(frozen=True, kw_only=True)
class Called:
    """A process has connected to a socket that is the host's, and waits for Accept.

    ``id`` is that of its container or volume, ``socket`` what the mount or :class:`Show` names; ``uid``,
    ``gid`` and ``groups`` are the process', in the guest.
    """

    op: ClassVar[str] = "called"
    id: Id
    socket: Annotated[str, Length(1, 128)]
    call: int
    uid: UserId
    gid: UserId
    groups: Annotated[tuple[UserId, ...], Length(0, 64)] = ()


@dataclass(frozen=True, kw_only=True)
class Listening:
    """The sockets that containers have bound in the root of the volume ``id``: all, at each change."""

    op: ClassVar[str] = "listening"
    id: Id
    sockets: Annotated[tuple[BoundSocket, ...], Length(0, MAX_BOUND)] = ()


@dataclass(frozen=True, kw_only=True)
class Log:
    """A line of the agent's own log."""

    op: ClassVar[str] = "log"
    level: Literal["debug", "info", "warning", "error"]
    text: Annotated[str, Length(0, 8192)]


REQUESTS: dict[str, type[Request[Any]]] = {
    kind.op: kind
    for kind in (
        Ping, Setup, Create, Start, Signal, Delete, Update, Exec, Resize, Stats, Connect,
        Dump, Resume, Quiesce, Online, Hold, Fill, FillAll, Fetch, Drop, DropAll, Flush, Clock,
        Accept, Dial, Freeze, Prepare, Changes, Show,
    )
}  # fmt: skip

Event = ContainerExited | ExecExited | OutOfMemory | Called | Listening | Log
EVENTS: dict[str, type[Event]] = {
    kind.op: kind for kind in (ContainerExited, ExecExited, OutOfMemory, Called, Listening, Log)
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a request was refused."""

    code: Code
    message: Annotated[str, Length(0, 65536)]


def pack_request(request: Request[Any]) -> bytes:
    """Payload of a REQUEST frame."""
    return dumps({"op": request.op, "args": encode(request)})


def unpack_request(payload: bytes) -> Request[Any]:
    """The request; :class:`Refused` for an unknown operation, ProtocolError for anything malformed."""
    envelope = loads(payload)
    kind = REQUESTS.get(str(envelope.get("op")))
    if kind is None:
        raise Refused(
            "unknown_op", f"this agent does not know the operation {str(envelope.get('op'))[:64]!r}"
        )
    return decode(kind, envelope.get("args", {}), kind.op)


def pack_reply(reply: Any) -> bytes:
    """Payload of a REPLY frame for a request that was served."""
    return dumps({"ok": encode(reply)})


def pack_failure(code: str, message: str) -> bytes:
    """Payload of a REPLY frame for a request that was refused."""
    return dumps({"error": {"code": code, "message": message[:16384]}})


def unpack_reply(request: Request[R], payload: bytes) -> R:
    """The reply to ``request``; raises :class:`Refused` if it says so."""
    envelope = loads(payload)
    if "error" in envelope:
        failure = decode(Failure, envelope["error"], "error")
        raise Refused(failure.code, failure.message)
    reply: R = decode(request.reply_type(), envelope.get("ok"), f"reply to {request.op}")
    return reply


def pack_event(event: Event) -> bytes:
    """Payload of an EVENT frame."""
    return dumps({"op": event.op, "args": encode(event)})


def unpack_event(payload: bytes) -> Event | None:
    """The event; None for one this side does not know."""
    envelope = loads(payload)
    kind = EVENTS.get(str(envelope.get("op")))
    if kind is None:
        return None
    return decode(kind, envelope.get("args", {}), kind.op)
