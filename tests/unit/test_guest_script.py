"""Scripts of system calls, run by real children."""

import errno
import os
import select

import pytest

from orlop.guest.launch import spawn
from orlop.guest.launch.script import ANY, Script, errors

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the walker is x86-64 code")


def launch(steps: Script, *, gate: bool = False) -> spawn.Spawned:
    ours, theirs = spawn.control_pair()
    first = Script()
    spawn.keep_only_control(first, theirs.fileno())
    if gate:
        first.gate(spawn.CONTROL)
    first.include(steps)
    child = spawn.start(first)
    theirs.close()
    child.control = ours
    return child


def finish(child: spawn.Spawned) -> int:
    select.select([child.pidfd], [], [], 5)
    _, status = os.waitpid(child.pid, 0)
    child.close()
    return os.waitstatus_to_exitcode(status)


def hear(child: spawn.Spawned) -> bool:
    assert child.control is not None
    select.select([child.control], [], [], 5)
    return child.receive()


def run_true(steps: Script, program: str = "/bin/true") -> None:
    steps.add(
        "execve", program, steps.array([b"true"]), steps.array([b"A=B"]), what="exec", code="exec_failed"
    )


def test_it_ends_in_the_program() -> None:
    steps = Script()
    run_true(steps)
    child = launch(steps)
    assert not hear(child)
    assert finish(child) == 0
    assert child.script.problem() is None
    assert child.script.at_end


def test_a_failing_step_is_named_and_nothing_after_it_runs() -> None:
    steps = Script()
    steps.add("chdir", "/nowhere at all", what="go there", code="invalid")
    run_true(steps)
    child = launch(steps)
    assert finish(child) == 127
    problem = child.script.problem()
    assert problem is not None
    assert (problem.code, str(problem)) == ("invalid", "go there: no such file or directory")
    assert not child.script.at_end


def test_a_failing_exec_is_the_last_word() -> None:
    steps = Script()
    run_true(steps, "/nowhere/true")
    child = launch(steps)
    assert finish(child) == 127
    problem = child.script.problem()
    assert problem is not None
    assert problem.code == "exec_failed"
    assert child.script.at_end


@pytest.mark.parametrize("mask", [errors(errno.ENOENT), errors(errno.EPERM, errno.ENOENT), ANY])
def test_tolerated_errors_do_not_stop_it(mask: int) -> None:
    steps = Script()
    steps.add("chdir", "/nowhere", tolerate=mask)
    run_true(steps)
    assert finish(launch(steps)) == 0


def test_other_errors_than_the_tolerated_do() -> None:
    steps = Script()
    steps.add("chdir", "/nowhere", tolerate=errors(errno.EPERM))
    run_true(steps)
    assert finish(launch(steps)) == 127


def test_it_waits_at_a_gate_for_steps_that_are_laid_later() -> None:
    steps = Script()
    steps.add("umask", 0)
    child = launch(steps, gate=True)
    assert hear(child)
    run_true(child.script)
    child.script.lay()
    child.go()
    assert not hear(child)
    assert finish(child) == 0
    assert child.script.at_end


def test_arguments_can_be_patched_after_an_include() -> None:
    common = Script()
    common.label("where")
    common.add("chdir", "/nowhere")
    for directory, code in (("/", 0), ("/nowhere", 127)):
        steps = Script()
        steps.include(common)
        steps.patch("where", 0, directory)
        run_true(steps)
        assert finish(launch(steps)) == code


def test_descriptors_of_the_agent_do_not_reach_the_program() -> None:
    reader, writer = os.pipe()
    steps = Script()
    names = [b"sh", b"-c", b"test ! -e /proc/self/fd/%d" % writer]
    steps.add("execve", "/bin/sh", steps.array(names), steps.array([]))
    os.set_inheritable(writer, True)
    assert finish(launch(steps)) == 0
    os.close(reader)
    os.close(writer)


def test_an_endless_script_goes_on_until_it_is_killed() -> None:
    steps = Script()
    steps.forever("ppoll")
    child = spawn.start(steps)
    assert select.select([child.pidfd], [], [], 0.05)[0] == []
    os.kill(child.pid, 9)
    assert finish(child) == -9
