"""The keeper of a node: it holds containerd's connections while the daemon is away.

containerd takes a shim whose connection closes for dead, and removes its container. So what it connects to
is this process, which lives as long as there are tasks, and does little that could fail. For each connection
of containerd's it has one to the daemon, and passes frames on. When that one ends, it makes it anew and
repeats the questions that have no answer yet; those that may not be done twice fail. It also holds what the
daemon gives it: descriptors of FIFOs, whose other ends would take the daemon's death for the end.

One thread, the standard library alone, one message of 4 MiB at most at a time in each direction.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from orlop.errors import Code
from orlop.shim import places
from orlop.shim.command import protobuf
from orlop.shim.command.call import HEADER, MAX_MESSAGE, REQUEST, RESPONSE, refusal

MOST_LINKS = 4096
MOST_PENDING = 1024
MOST_WAITING = 2 * MAX_MESSAGE
"""Bytes that one side may leave unread before the other is not read from any more."""

PATIENCE = 30.0
"""Seconds that a question waits for a daemon; only that for an end waits longer."""

LINGER = 20.0
"""Seconds without connections, and with nothing to hold, after which the keeper ends: so the next pod of a
node that has none for a moment need not wait for a keeper to start."""

DESERTED = 5.0
"""The same when there is no daemon, either."""

PARTING = 5.0
"""Seconds after the answer to Shutdown in which a client may close its connection itself, as containerd does.
CRI-O, used to shims that end then, keeps one for each container that ever was."""

ABANDONED = 600.0
"""Seconds without a daemon after which none is thought to come back, as when it was removed. What lives is
kept all the same."""

RETRY = 0.1
_CARE = 5.0
"""Seconds between two looks at what nothing is heard of."""

_LOOK = 1.0
"""Seconds between two looks at what is around a keeper without a daemon."""

_CHUNK = 1 << 16
_MOST_KEYS = 1 << 16
_LONGEST_NOTE = 1 << 12
_DESCRIPTORS = 4

_METHOD = 2
"""Its field in a request."""

ONCE = frozenset({"Checkpoint", "Create", "Exec", "Start", "StartSandbox"})
"""What may not be done twice."""

ENDS = frozenset({"Wait", "WaitSandbox"})
"""What asks for an end, which may take as long as a task lives."""

_LAST = "Shutdown"
"""What is asked last."""

_AGAIN = protobuf.text(5, protobuf.text(1, places.AGAIN) + protobuf.text(2, "1"))
_ABSENT = "no orlopd listens at {path}: start it with 'systemctl start orlopd'"
_LOST = "orlopd went away during {method}: ask for the state, and try again"


class OpenCall:
    """A request that has no answer yet."""

    def __init__(self, stream: int, data: bytes, namespace: str) -> None:
        self.stream = stream
        self.data = data + protobuf.text(5, protobuf.text(1, places.NAMESPACE) + protobuf.text(2, namespace))
        self.since = time.monotonic()
        self.sent = False
        try:
            self.method = protobuf.strings(data, (_METHOD,)).get(_METHOD, "")
        except ValueError:
            self.method = ""

    def frame(self) -> bytes:
        """It as it travels; one that travelled before says so."""
        data = self.data + _AGAIN if self.sent else self.data
        self.sent = True
        return HEADER.pack(len(data), self.stream, REQUEST, 0) + data


class Wire:
    """One socket: what came and is not a whole frame yet, and what could not be sent yet."""

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        self.link = link
        self.incoming = bytearray()
        self.outgoing = bytearray()

    def read(self) -> list[tuple[int, int, bytes, bytes]]:
        """Frames: stream, kind, message, and all of it. Raises OSError, also at the end and for nonsense."""
        try:
            data = self.link.recv(_CHUNK)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError
        self.incoming += data
        found = []
        while len(self.incoming) >= HEADER.size:
            length, stream, kind, _ = HEADER.unpack_from(self.incoming)
            if length > MAX_MESSAGE:
                raise ConnectionAbortedError
            if len(self.incoming) < HEADER.size + length:
                break
            frame = bytes(self.incoming[: HEADER.size + length])
            del self.incoming[: len(frame)]
            found.append((stream, kind, frame[HEADER.size :], frame))
        return found

    def write(self) -> None:
        """Send what can be sent now. Raises OSError."""
        while self.outgoing:
            try:
                count = self.link.send(memoryview(self.outgoing)[:_CHUNK])
            except BlockingIOError:
                return
            del self.outgoing[:count]


class Pair:
    """A connection of containerd's, and the daemon's for it."""

    def __init__(self, link: socket.socket, address: str, namespace: str) -> None:
        self.client = Wire(link)
        self.daemon: Wire | None = None
        self.questions: dict[int, OpenCall] = {}
        self._parted_at = 0.0
        self._address = address
        self._namespace = namespace

    def heard(self) -> None:
        """Take what containerd says. Raises OSError when that has ended."""
        for stream, kind, data, frame in self.client.read():
            if kind != REQUEST:
                if self.daemon is not None:
                    self.daemon.outgoing += frame
                continue
            question = OpenCall(stream, data, self._namespace)
            waiting = sum(len(one.data) for one in self.questions.values()) if data else 0
            if len(self.questions) >= MOST_PENDING or waiting + len(data) > MOST_WAITING:
                self._refuse(question, f"{len(self.questions)} calls wait on this connection already")
                continue
            self.questions[stream] = question
            if self.daemon is not None:
                self.daemon.outgoing += question.frame()

    def answered(self) -> None:
        """Take what the daemon says. Raises OSError when that has ended."""
        assert self.daemon is not None
        for stream, kind, _, frame in self.daemon.read():
            question = self.questions.pop(stream, None) if kind == RESPONSE else None
            if question is not None and question.method == _LAST:
                self._parted_at = time.monotonic()
            self.client.outgoing += frame

    def over(self, now: float) -> bool:
        """Whether its client has asked the last question long enough ago, and waits for nothing."""
        waits = bool(self.questions or self.client.outgoing)
        return self._parted_at > 0 and not waits and now - self._parted_at >= PARTING

    def connect(self) -> bool:
        """Try to reach the daemon, and ask it all that has no answer."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        link.setblocking(False)
        try:
            link.connect(self._address)
        except OSError:
            link.close()
            return False
        self.daemon = Wire(link)
        for stream in sorted(self.questions):
            self.daemon.outgoing += self.questions[stream].frame()
        return True

    def lost(self) -> None:
        """The daemon is gone: what it may have done by half has failed."""
        assert self.daemon is not None
        self.daemon.link.close()
        self.daemon = None
        for question in list(self.questions.values()):
            if question.sent and question.method in ONCE:
                self._refuse(question, _LOST.format(method=question.method))

    def impatient(self, now: float) -> None:
        """Refuse what has waited long enough for a daemon."""
        for question in list(self.questions.values()):
            if question.method not in ENDS and now - question.since > PATIENCE:
                self._refuse(question, _ABSENT.format(path=self._address))

    def _refuse(self, question: OpenCall, reason: str) -> None:
        self.questions.pop(question.stream, None)
        data = refusal(reason, Code.UNAVAILABLE)
        self.client.outgoing += HEADER.pack(len(data), question.stream, RESPONSE, 0) + data

    def close(self) -> None:
        """Let go of both."""
        self.client.link.close()
        if self.daemon is not None:
            self.daemon.link.close()


class Holds:
    """What the daemon has left here by its keys: tasks, with a process or not, and descriptors of FIFOs."""

    def __init__(self) -> None:
        self._held: dict[str, list[int]] = {}
        self._expected: set[str] = set()
        self._old: set[str] = set()

    def __len__(self) -> int:
        return len(self._held)

    def live(self) -> bool:
        """Whether a task has a process that runs, or one that nobody has told of."""
        return any(
            key not in self._expected and (not held or _runs(held[0]))
            for key, held in self._held.items()
            if key.endswith("/")
        )

    def take(self, verb: str, key: str, descriptors: list[int]) -> None:
        """Do what a note says: hold, drop, or forget all that was not held anew since ``begin``. What is
        expected is held as well, but nothing of it lives."""
        if verb in ("hold", "expect") and (key in self._held or len(self._held) < _MOST_KEYS):
            self._drop(key)
            self._held[key], descriptors = descriptors, []
            if verb == "expect":
                self._expected.add(key)
        elif verb == "drop":
            self._drop(key)
        elif verb == "begin":
            self._old = set(self._held)
        elif verb == "end":
            for one in self._old:
                self._drop(one)
            self._old = set()
        self._old.discard(key)
        for descriptor in descriptors:
            os.close(descriptor)

    def close(self) -> None:
        """Hold nothing."""
        for key in list(self._held):
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._expected.discard(key)
        for descriptor in self._held.pop(key, ()):
            os.close(descriptor)


def _runs(process: int) -> bool:
    """Whether the process that a descriptor stands for has not ended."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return not poll.poll(0)


class OwnPath:
    """The path of a listening socket, as long as it leads to that one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = self._found()

    def leads_here(self) -> bool:
        """Whether who connects there comes here. What cannot be looked at is taken for what it was."""
        try:
            return self._file is not None and self._found() == self._file
        except OSError:
            return True

    def remove(self) -> None:
        """Take it away, unless it is another's by now."""
        if self.leads_here():
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    def _found(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        # The number of a file that was removed may be the next one's.
        return status.st_dev, status.st_ino, status.st_mtime_ns


class Keeper:
    """All of it: sockets for containerd to connect to, one for the daemon, and what came of that."""

    def __init__(self, state: str, holding: socket.socket) -> None:
        self._state = state
        self._address = f"{state}/{places.DAEMON_SOCKET}"
        self._serving: dict[str, socket.socket] = {}
        self._holding = holding
        self._paths = {places.HOLD_SOCKET: OwnPath(f"{state}/{places.HOLD_SOCKET}")}
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, int] = {}
        self._pairs: set[Pair] = set()
        self._notes: set[socket.socket] = set()
        self._holds = Holds()
        self._idle_since = self._daemon_seen = time.monotonic()
        self._look_at = 0.0
        self._needed = True

    def run(self) -> None:
        """Serve until there is nothing to keep, or nobody to keep it for."""
        try:
            self._run()
        finally:
            self._close()

    def _run(self) -> None:
        self._holding.setblocking(False)
        self._selector.register(self._holding, selectors.EVENT_READ, self._accept_notes)
        care_at = 0.0
        while True:
            away = any(pair.daemon is None for pair in self._pairs)
            for key, events in self._selector.select(RETRY if away else _CARE):
                work: Callable[[int], None] = key.data
                work(events)
            now = time.monotonic()
            if away or now >= care_at:
                care_at = now + _CARE
                for pair in list(self._pairs):
                    self._care(pair, now)
            if self._useless(now) and self._end():
                return

    def _care(self, pair: Pair, now: float) -> None:
        """Do what is due for a pair of which nothing may have been heard."""
        if pair.over(now):
            self._part(pair)
            return
        if pair.daemon is None and not pair.connect():
            pair.impatient(now)
        self._pass_on(pair)

    def _pass_on(self, pair: Pair) -> None:
        """Send what can be sent now, and look for when more can be done."""
        try:
            pair.client.write()
        except OSError:
            self._part(pair)
            return
        if pair.daemon is not None:
            try:
                pair.daemon.write()
            except OSError:
                self._lose(pair)
        self._watch(pair)

    def _serve(self, namespace: str, descriptor: int) -> None:
        """Listen for a namespace; in the place of what listened before."""
        listener = socket.socket(fileno=descriptor)
        listener.setblocking(False)
        if (before := self._serving.pop(namespace, None)) is not None:
            self._selector.unregister(before)
            before.close()
        self._serving[namespace] = listener
        name = places.SOCKET.format(namespace=namespace)
        self._paths[name] = OwnPath(f"{self._state}/{name}")
        self._selector.register(listener, selectors.EVENT_READ, lambda _: self._accept(namespace, listener))

    def _accept(self, namespace: str, listener: socket.socket) -> bool:
        try:
            link, _ = listener.accept()
        except OSError:
            return False
        if len(self._pairs) >= MOST_LINKS:
            link.close()
            return False
        pair = Pair(link, self._address, namespace)
        self._pairs.add(pair)
        self._care(pair, time.monotonic())
        return True

    def _accept_notes(self, _events: int) -> None:
        with suppress(OSError):
            link, _ = self._holding.accept()
            link.setblocking(False)
            self._notes.add(link)
            self._selector.register(link, selectors.EVENT_READ, lambda _: self._note(link))

    def _note(self, link: socket.socket) -> None:
        try:
            note, ancillary, _, _ = link.recvmsg(_LONGEST_NOTE, socket.CMSG_SPACE(_DESCRIPTORS * 4))
        except BlockingIOError:
            return
        except OSError:
            note, ancillary = b"", []
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not note:
            self._selector.unregister(link)
            self._notes.discard(link)
            link.close()
            return
        verb, key = understood(note)
        if verb == "serve" and len(descriptors) == 1 and key:
            self._serve(key, descriptors[0])
        else:
            self._holds.take(verb, key, list(descriptors))
        with suppress(OSError):
            link.send(b"done")  # so that who holds knows it is held

    def _watch(self, pair: Pair) -> None:
        """Look at both sides of a pair for what can be done now."""
        for wire, other, work in (
            (pair.client, pair.daemon, lambda events: self._client(pair, events)),
            (pair.daemon, pair.client, lambda events: self._daemon(pair, events)),
        ):
            if wire is None:
                continue
            events = selectors.EVENT_WRITE if wire.outgoing else 0
            # Of a client that does not take its answers nothing more is taken; the daemon always answers.
            full = wire is pair.client and len(wire.outgoing) >= MOST_WAITING
            if not full and (other is None or len(other.outgoing) < MOST_WAITING):
                events |= selectors.EVENT_READ
            self._select(wire.link, events, work)

    def _select(self, link: socket.socket, events: int, work: Callable[[int], None]) -> None:
        number = link.fileno()
        before = self._watched.get(number, 0)
        if events == before:
            return
        if not before:
            self._selector.register(link, events, work)
        elif events:
            self._selector.modify(link, events, work)
        else:
            self._selector.unregister(link)
        self._watched[number] = events

    def _forget(self, wire: Wire | None) -> None:
        if wire is not None and self._watched.pop(wire.link.fileno(), 0):
            self._selector.unregister(wire.link)

    def _client(self, pair: Pair, events: int) -> None:
        if pair not in self._pairs:
            return
        if events & selectors.EVENT_READ:
            try:
                pair.heard()
            except OSError:
                self._part(pair)
                return
        self._pass_on(pair)

    def _part(self, pair: Pair) -> None:
        self._forget(pair.client)
        self._forget(pair.daemon)
        self._pairs.discard(pair)
        pair.close()

    def _daemon(self, pair: Pair, events: int) -> None:
        if pair not in self._pairs or pair.daemon is None:
            return
        if events & selectors.EVENT_READ:
            try:
                pair.answered()
            except OSError:
                self._lose(pair)
        self._pass_on(pair)

    def _lose(self, pair: Pair) -> None:
        """Its daemon is gone; another is tried in a moment."""
        self._forget(pair.daemon)
        pair.lost()

    def _useless(self, now: float) -> bool:
        if self._wanted(now):
            self._idle_since = now
            return False
        idle = now - self._idle_since
        return idle >= LINGER or (idle >= DESERTED and not self._answers())

    def _wanted(self, now: float) -> bool:
        """Whether there is something to keep, and somebody who may ask for it."""
        if not self._pairs and not self._holds:
            return False
        if self._notes or any(pair.daemon is not None for pair in self._pairs):
            self._daemon_seen = now
            return True
        if now >= self._look_at:
            self._look_at = now + _LOOK
            self._needed = self._wanted_alone(now)
        return self._needed

    def _wanted_alone(self, now: float) -> bool:
        """The same without a daemon: containerd may have connections here, and tasks that live."""
        if not any(path.leads_here() for path in self._paths.values()):
            # Neither containerd nor a daemon can come any more; who is here stays while something lives.
            return bool(self._pairs) and self._holds.live()
        if self._holds.live():
            return True
        if self._answers():
            self._daemon_seen = now
        return now - self._daemon_seen < ABANDONED

    def _answers(self) -> bool:
        """Whether there is a daemon. One that did not think of tasks does then, and says what to hold."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._address)
            except OSError:
                return False
        return True

    def _end(self) -> bool:
        """Give the sockets up; not while somebody is about to connect."""
        lock = -1
        try:
            with suppress(FileNotFoundError, NotADirectoryError):  # without the directory nobody is
                lock = os.open(f"{self._state}/{places.LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if any(self._accept(name, listener) for name, listener in self._serving.items()):
                return False
            for path in self._paths.values():
                path.remove()
        except BlockingIOError:
            return False
        finally:
            if lock >= 0:
                os.close(lock)
        return True

    def _close(self) -> None:
        for link in (*self._serving.values(), *self._notes):
            link.close()
        for pair in self._pairs:
            pair.close()
        self._holds.close()
        self._selector.close()


def main(state: str) -> None:
    """Keep, with the socket for the daemon as descriptor 3."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with socket.socket(fileno=3) as holding:
        Keeper(state, holding).run()


def understood(note: bytes) -> tuple[str, str]:
    """The verb and the key of a note; nothing of one that is none."""
    try:
        said = json.loads(note)
        return str(said["verb"]), str(said.get("key", ""))
    except (ValueError, KeyError, AttributeError, TypeError):
        return "", ""
