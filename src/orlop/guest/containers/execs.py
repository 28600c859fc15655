"""Processes that were started in running containers after their first."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from orlop.guest.answer import Answer
from orlop.guest.containers.container import LiveContainer
from orlop.guest.containers.process import Process
from orlop.guest.launch import spawn
from orlop.guest.launch.program import TTY_GROUP, Program, add_program, add_terminal, prepare
from orlop.guest.launch.script import ANY, Script
from orlop.guest.launch.userns import outer_id
from orlop.guest.streams.table import Streaming
from orlop.linux import syscalls
from orlop.wire import messages
from orlop.wire.messages import Refused
from orlop.wire.values import Container

_JOIN_SESSION_KEYRING = 1


@dataclass
class Running:
    """One exec. It stays until its exit was told and its streams are done."""

    request: messages.Exec
    process: Process
    told: bool = False


def _as_asked(spec: Container, request: messages.Exec) -> Container:
    """The container with the directory and the user that the exec wants."""
    if request.cwd:
        spec = replace(spec, cwd=request.cwd)
    if (user := request.user) is not None:
        spec = replace(
            spec,
            security=replace(
                spec.security,
                user=str(user.uid),
                group=str(user.gid),
                supplemental_groups=user.groups,
                strict_groups=True,
            ),
        )
    return spec


class ExecTable:
    """The execs of all containers, by their own id within their container's.

    ``adopt`` has a process told of its child's end; ``emit`` sends an event and says whether it did.
    """

    def __init__(
        self,
        streaming: Streaming,
        adopt: Callable[[Process], None],
        emit: Callable[[messages.Event], bool],
    ) -> None:
        self._adopt = adopt
        self._streaming = streaming
        self._emit = emit
        self._running: dict[tuple[str, str], Running] = {}

    def get(self, container_id: str, id_: str) -> Running:
        """One exec; ``not_found``."""
        running = self._running.get((container_id, id_))
        if running is None:
            raise Refused("not_found", f"there is no exec {id_} in container {container_id}")
        return running

    def start(self, request: messages.Exec, entry: LiveContainer, answer: Answer) -> None:
        """Fork into the container; answers when exec succeeded or why it did not."""
        key = (request.container_id, request.id)
        if key in self._running:
            raise Refused("exists", f"exec {request.id} exists already")
        process = Process(self._streaming, request.streams, tty=request.tty)
        running = Running(request, process)

        def on_started(problem: Refused | None) -> None:
            if problem is not None:
                running.told = True
                process.close()
                answer.refuse(problem)
                return
            answer.ok(messages.Done())

        process.on_started = on_started
        process.on_exit = lambda code: self._on_exit(running)
        process.on_finished = lambda: self._forget_if_done(running)
        self._running[key] = running
        try:
            self._launch(request, entry, process)
        except BaseException:
            self._running.pop(key, None)
            process.let_go()
            raise
        self._adopt(process)

    def signal(self, container_id: str, id_: str, number: int) -> None:
        """Signal one; one that has ended and was forgotten is no error. KILL is for its whole session."""
        running = self._running.get((container_id, id_))
        if running is None:
            return
        if number == 9:
            running.process.kill_session()
        else:
            running.process.signal(number)

    def kill_all(self, container_id: str) -> None:
        """Its container goes."""
        for (owner, _), running in list(self._running.items()):
            if owner == container_id:
                running.process.kill_session()
                running.process.close()

    def abandon(self) -> None:
        """Kill all: the daemon that started them is gone, and nobody waits for their ends."""
        for running in list(self._running.values()):
            running.told = True
            running.process.kill_session()
            running.process.close()
            self._forget_if_done(running)

    def _launch(self, request: messages.Exec, entry: LiveContainer, process: Process) -> None:
        spec, child = entry.spec, entry.process.child
        if child is None or entry.root is None:
            raise Refused("failed_precondition", f"container {spec.id} has ended")
        own_user_namespace = spec.namespaces.maps_users
        env = {key.encode(): value for key, value in request.env} or entry.env
        wanted = Program(_as_asked(spec, request), request.args, env, request.tty)
        pins = None
        if entry.root_is_shared:
            pins = entry.root.pins()
            process.hold(pins)
        prepared = prepare(wanted, entry.root, pins)
        owner = outer_id(prepared.identity.uid, spec.namespaces.uid_mappings)
        steps = Script()
        group = entry.cgroup.open()

        def launch(stdio: tuple[int, int, int], control: socket.socket) -> spawn.Spawned:
            spawn.set_stdio(steps, stdio)
            namespaces = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP
            if own_user_namespace:
                namespaces |= syscalls.CLONE_NEWUSER
            steps.add(
                "setns", child.pidfd, namespaces, what="the container has ended", code="failed_precondition"
            )
            if own_user_namespace:
                steps.add("setresgid", 0, 0, 0)
                steps.add("setresuid", 0, 0, 0)
            steps.add("setsid")
            steps.add("keyctl", _JOIN_SESSION_KEYRING, b"orlop", tolerate=ANY)
            spawn.keep_only_control(steps, control.fileno())
            if request.tty:
                add_terminal(steps, self._terminal(request, entry, process, owner), console=False)
            add_program(steps, prepared, make_cwd=False)
            return spawn.start(steps, cgroup=group, pid_namespace=entry.pid_namespace)

        try:
            process.spawn(launch, owner=owner)
        except OSError as error:
            raise Refused(
                "failed_precondition", f"container {spec.id} has ended: {error.strerror}"
            ) from error
        finally:
            os.close(group)

    def _terminal(self, request: messages.Exec, entry: LiveContainer, process: Process, owner: int) -> str:
        assert entry.root is not None
        group = outer_id(TTY_GROUP, entry.spec.namespaces.gid_mappings)
        master, path = entry.root.terminal(owner, group)
        process.adopt_terminal(master)
        return path

    def _on_exit(self, running: Running) -> None:
        process, request = running.process, running.request
        assert process.exit is not None
        if not running.told:
            running.told = self._emit(
                messages.ExecExited(id=request.id, container_id=request.container_id, exit=process.exit)
            )
        self._forget_if_done(running)

    def _forget_if_done(self, running: Running) -> None:
        if running.told and running.process.finished:
            self._running.pop((running.request.container_id, running.request.id), None)
