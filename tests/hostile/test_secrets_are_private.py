"""A user of the node without rights looks for what pods keep: environment, files, images, memory."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.node import BUSYBOX, Node

NOBODY = 65534
SECRET = "hunter2-of-a-container"
SCRIPT = (
    f"umask 0; echo {SECRET} > /being-written; cp /bin/busybox /set-uid; chmod 4755 /set-uid; "
    "mv /being-written /written; sleep 1000"
)
WAIT = "until cat /written 2>/dev/null; do sleep 0.1; done"


def _everything(*tops: Path) -> list[Path]:
    found = []
    for top in tops:
        for directory, names, files in os.walk(top):
            found += [Path(directory), *(Path(directory) / name for name in (*names, *files))]
    return found


def _reachable(paths: list[Path]) -> list[str]:
    """Which of the paths a user without rights can read, list, run or connect to, knowing their names."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            answer = json.dumps([os.fspath(path) for path in paths if _opens(path)])
            os.write(writing, answer.encode()[:60000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        text = answers.read()
    os.waitpid(child, 0)
    found: list[str] = json.loads(text)
    return found


def _opens(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return False
        if stat.S_ISSOCK(mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(os.fspath(path))
            return True
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT) and os.access(path, os.R_OK)
    return True


@pytest.fixture
def busy_node(shared_node: Node) -> Node:
    for handler in ("vm", "process"):
        _, container = shared_node.run(
            BUSYBOX, "sh", "-c", SCRIPT, handler=handler, envs=[{"key": "PASSWORD", "value": SECRET}]
        )
        assert shared_node.crictl("exec", container, "sh", "-c", WAIT).out.strip() == SECRET
    return shared_node


def test_nobody_reads_what_is_kept(busy_node: Node) -> None:
    root, state = Path(busy_node.settings.scratch) / "root", Path(busy_node.settings.scratch) / "state"
    assert _holds(root, SECRET), "the secret should be in the journal, or the test looks in the wrong place"
    for above in (root, *root.parents):
        # Only the daemon's own modes are on trial.
        if str(above).startswith("/tmp/") and above != root:
            above.chmod(stat.S_IMODE(above.stat().st_mode) | 0o011)
    paths = _everything(root, state)
    assert len(paths) > 100
    assert _reachable([Path("/etc/passwd")]) == ["/etc/passwd"]
    assert _reachable(paths) == []


def _holds(root: Path, text: str) -> bool:
    return any(text.encode() in path.read_bytes() for path in root.glob("journal.db*"))
