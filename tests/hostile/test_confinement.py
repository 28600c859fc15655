"""What the process that unpacks layers could do if a layer took it over: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ATTEMPTS = """
import ctypes, json, os, resource, signal, socket, sys, threading
from orlop.host import confinement
libc = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

attempts = {
    "read a file": lambda: os.close(os.open("/etc/shadow", os.O_RDONLY)),
    "see itself in /proc": lambda: os.close(os.open("/proc/self/maps", os.O_RDONLY)),
    "make a file": lambda: os.close(os.open(sys.argv[2] + "/made", os.O_CREAT | os.O_WRONLY)),
    "use the network": lambda: socket.socket(socket.AF_INET).close(),
    "reach a socket of the host": lambda: socket.socket(socket.AF_UNIX).close(),
    "start a process": fork,
    "signal its parent": lambda: os.kill(os.getppid(), 0),
    "look into its parent": lambda: checked(libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0)),
    "mount": lambda: checked(libc.mount(b"none", sys.argv[2].encode(), b"tmpfs", 0, None)),
    "be root": lambda: os.setuid(0),
    "leave its root": lambda: os.chroot("."),
    "load a program for the kernel": lambda: checked(libc.syscall(321, 0, None, 0)),
}
if sys.argv[1] == "confined":
    confinement.bound(memory=1 << 30, output=1 << 20, seconds=60)
    confinement.confine(sys.argv[3])
done = []
for name, attempt in attempts.items():
    try:
        attempt()
    except OSError as error:
        if error.errno != 1:
            done.append(name)  # the kernel looked at it
        continue
    done.append(name)
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
os.write(1, json.dumps({"done": done, "failed": sorted(set(attempts) - set(done))}).encode())
os._exit(0)
"""


def _attempt(how: str, tmp_path: Path) -> dict[str, list[str]]:
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", ATTEMPTS, how, tmp_path, empty],
        capture_output=True,
        check=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_without_it_everything_can_be_done(tmp_path: Path) -> None:
    assert _attempt("free", tmp_path)["failed"] == []


def test_with_it_nothing_can_be_done(tmp_path: Path) -> None:
    found = _attempt("confined", tmp_path)
    assert (found["done"], len(found["failed"])) == ([], 12)


def test_output_and_memory_are_bounded(tmp_path: Path) -> None:
    script = """
import os, sys
from orlop.host import confinement
confinement.bound(memory=1 << 30, output=1 << 20, seconds=1)
confinement.confine(sys.argv[1])
try:
    output = int(sys.argv[2])
    os.pwrite(output, bytes(1 << 21), 0)
    os.pwrite(output, b"x", 1 << 20)
except OSError as error:
    os.write(1, b"output ")
try:
    bytearray(2 << 30)
except MemoryError:
    os.write(1, b"memory")
while True:
    pass
"""
    (tmp_path / "empty").mkdir()
    output = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "empty", str(output)],
        capture_output=True,
        pass_fds=(output,),
        check=False,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout, done.returncode) == (b"output memory", -9), done.stderr
    os.close(output)
    assert (tmp_path / "out").stat().st_size <= 1 << 20
