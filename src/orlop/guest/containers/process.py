"""A process of a container or an exec: its child, its streams, its terminal, its end."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress

from orlop.guest.launch import spawn
from orlop.guest.launch.pins import Pins
from orlop.guest.launch.script import Script
from orlop.guest.launch.spawn import Spawned
from orlop.guest.loop import IN
from orlop.guest.streams.pipes import InputPipe, OutputPipe
from orlop.guest.streams.table import Streaming
from orlop.wire.messages import Refused
from orlop.wire.values import Exit, Streams

Launch = Callable[[tuple[int, int, int], socket.socket], Spawned]


class Process:
    """One process.

    ``on_ready`` comes when the child waits at a gate; ``on_started`` with the word that exec succeeded,
    or why not; ``on_exit`` with its exit code; ``on_finished`` when its streams are done as well.
    """

    def __init__(self, streaming: Streaming, streams: Streams, *, tty: bool) -> None:
        self.streams = streams
        self.tty = tty
        self.child: Spawned | None = None
        self.exit: Exit | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_started: Callable[[Refused | None], None] = lambda problem: None
        self.on_exit: Callable[[int], None] = lambda code: None
        self.on_finished: Callable[[], None] = lambda: None
        self._streaming = streaming
        self._loop = streaming.loop
        self._input: InputPipe | None = None
        self._outputs: list[OutputPipe] = []
        self._pipes: list[int] = []
        self._master = -1
        self._settled = False
        self._pins: list[Pins] = []

    @property
    def pid(self) -> int:
        """The process id in the guest; 0 when it has ended."""
        return self.child.pid if self.child is not None and self.exit is None else 0

    @property
    def finished(self) -> bool:
        """Whether it has ended and the host has all of its output."""
        return self.exit is not None and all(output.finished for output in self._outputs)

    def spawn(self, launch: Launch, owner: int = 0) -> None:
        """Make the pipes, launch with the child's ends as stdio, and listen to the child.

        The pipes become ``owner``'s, who may open /dev/stdout anew then.
        """
        self._streaming.claim(self.streams.stdin, self.streams.stdout, self.streams.stderr)
        ours, theirs = spawn.control_pair()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        given: list[int] = [null]
        kept: list[tuple[int, int]] = []
        stdio = [null, null, null]
        wanted = (self.streams.stdin, self.streams.stdout, self.streams.stderr)
        try:
            for number, stream in enumerate(wanted):
                if stream and not self.tty:
                    reader, writer = os.pipe2(os.O_CLOEXEC)
                    stdio[number], mine = (reader, writer) if number == 0 else (writer, reader)
                    given.append(stdio[number])
                    kept.append((number, mine))
                    if owner:
                        os.fchown(mine, owner, -1)
            child = launch((stdio[0], stdio[1], stdio[2]), theirs)
        except BaseException:
            ours.close()
            for _, fd in kept:
                os.close(fd)
            raise
        finally:
            theirs.close()
            for fd in given:
                os.close(fd)
        child.control = ours
        self.child = child
        for number, fd in kept:
            if number == 0:
                self._input = self._streaming.input(wanted[0], fd)
            else:
                self._outputs.append(self._streaming.output(wanted[number], fd, self._check_finished))
        self._pipes = [fd for _, fd in kept]
        self._loop.watch(ours.fileno(), IN, self._on_control)

    def hold(self, pins: Pins) -> None:
        """Own ``pins`` until :meth:`let_go`, the word of its start, or :meth:`close`."""
        self._pins.append(pins)

    def let_go(self) -> None:
        """Close all that was held for its making. Idempotent."""
        while self._pins:
            self._pins.pop().close()

    def give_pipes(self, owner: int) -> None:
        """Let ``owner`` open the pipes anew, as programs do with /dev/stdout. Before :meth:`go` only."""
        for fd in self._pipes:
            with suppress(OSError):
                os.fchown(fd, owner, -1)

    def adopt_terminal(self, master: int) -> None:
        """The terminal that is stdin and stdout; owns ``master`` from now on."""
        self._master = master
        if self.streams.stdin:
            self._input = self._streaming.input(self.streams.stdin, os.dup(master), terminal=True)
        if self.streams.stdout:
            output = self._streaming.output(self.streams.stdout, os.dup(master), self._check_finished)
            self._outputs.append(output)

    def go(self) -> None:
        """Open the child's gate."""
        assert self.child is not None
        self.child.go()

    def signal(self, number: int) -> None:
        """Send a signal; one that has ended is no error."""
        if self.child is not None and self.exit is None:
            with suppress(ProcessLookupError):
                os.kill(self.child.pid, number)

    def kill_session(self) -> None:
        """Kill the process and its process group."""
        if self.child is not None and self.exit is None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, 9)
            self.signal(9)

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; ignored without one."""
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", height, width, 0, 0))

    def ended(self, code: int) -> None:
        """The child was reaped. What it said before it ended is heard first."""
        child = self.child
        assert child is not None
        while child.control is not None:
            self._listen(child, ended=True)
        child.close()
        self.exit = Exit(code=code, finished_at=time.time_ns())
        if self._input is not None:
            self._input.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        self.on_exit(code)
        self._check_finished()

    def close(self) -> None:
        """Let go of all streams; what the host did not take is lost."""
        self.let_go()
        if self._input is not None:
            self._input.close()
        for output in self._outputs:
            output.drain()
            output.close()

    def _on_control(self, events: int) -> None:
        if self.child is not None and self.child.control is not None:
            self._listen(self.child, ended=False)

    def _listen(self, child: Spawned, *, ended: bool) -> None:
        try:
            ready = child.receive()
        except BlockingIOError:
            if not ended:
                return
            ready = False
        if ready:
            if not ended:
                self.on_ready()
            return
        assert child.control is not None
        self._loop.unwatch(child.control.fileno())
        child.hang_up()
        problem = child.script.problem()
        if problem is None and not child.script.at_end:
            problem = Refused("internal", "the process was killed while it was being set up")
        child.script = Script()
        if not self._settled:
            self._settled = True
            self.let_go()
            self.on_started(problem)

    def _check_finished(self) -> None:
        if self.finished:
            self.on_finished()
