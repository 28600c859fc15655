"""The CNI plug-in ``orlop-tenant`` as a program, for runtimes that start one: it asks the agent's socket.

It is a file of its own beside the reference plug-ins, written by the agent. Its interpreter reads the modules
that it names and no others: neither ``site`` nor this package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from orlop.host import files

NAME: Final = "orlop-tenant"

_TEXT: Final = '''\
#!{python} -IS
"""CNI plug-in of tenants' networks: asks the agent at {socket}. Written by Orlop; do not edit."""
import os
import _socket

said = b"".join(key + b"=" + value + b"\\0" for key, value in os.environb.items() if key.startswith(b"CNI_"))
try:
    with open(0, "rb", closefd=False) as file:
        said += b"\\0" + (file.read() or b"{{}}")
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    agent.connect({socket!r})
    agent.sendall(said)
    agent.shutdown(_socket.SHUT_WR)
    answer = b""
    while chunk := agent.recv(65536):
        answer += chunk
    status, whole, output = answer.partition(b"\\n")
    if not whole:
        raise OSError("its answer breaks off")
except OSError as error:
    status = b"1"
    output = b'{{"cniVersion":"1.0.0","code":11,"msg":"the agent at {socket} does not answer: %s"}}' % (
        str(error).replace('"', "'").encode()
    )
os.write(1, output)
os._exit(int(status))
'''


def install(directory: Path, socket: Path) -> Path:
    """Write the program into a directory of plug-ins; where it is. Raises OSError."""
    path = directory / NAME
    text = _TEXT.format(python=sys.executable, socket=str(socket)).encode()
    if not path.is_file() or path.read_bytes() != text:
        directory.mkdir(parents=True, exist_ok=True)
        files.save(path, text)
        path.chmod(0o755)
    return path
