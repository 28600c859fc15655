"""``orlop top CONTAINER``: its processes, as /proc shows them to a command that runs in it.

The containers of a pod see each other's processes; those of one are those in its control group.
"""

from __future__ import annotations

import re
from typing import Any

from orlop.cli import output
from orlop.cli.problems import CliError
from orlop.client import session
from orlop.client.node import Node
from orlop.errors import OrlopError

_FIELD, _END = "==field==\n", "==end==\n"
# The marks are put together where the script runs: it shows its own words, too.
_SCRIPT = """
field="==""field""=="; end="==""end""=="
echo "$$"; cat /proc/self/cgroup; echo "$end"
for one in /proc/[0-9]*; do
    cat "$one/stat" "$one/cgroup" && echo "$field" && cat "$one/status" && echo "$field" && cat "$one/cmdline"
    echo "$end"
done 2>/dev/null
exit 0
"""
_STAT = re.compile(r"(\d+) \((.*)\) (\S) (\d+) (.*)", re.DOTALL)
_UID = re.compile(r"^Uid:\s+(\d+)", re.MULTILINE)
_TICKS = 100
HEADER = ("UID", "PID", "PPID", "STATE", "TIME", "COMMAND")


async def processes_command(socket: str, name: str, *, as_json: bool) -> None:
    """``orlop top`` of a container."""
    async with session.connect(socket) as client:
        container = await Node(client).container(name)
        try:
            told = (await container.exec("sh", "-c", _SCRIPT)).check()
        except OrlopError as error:
            raise CliError(f"the processes of {name} are told by its own sh and cat: {error}") from error
    rows = parse(told.text)
    if as_json:
        output.print_json([dict(zip(HEADER, row, strict=True)) for row in rows])
    else:
        output.table(HEADER, rows)


def parse(told: str) -> list[tuple[str, ...]]:
    """What the script has written, without the script. What ended meanwhile is left out."""
    head, *records = told.split(_END)
    own, _, group = head.partition("\n")
    rows = []
    for record in records:
        fields = record.split(_FIELD)
        if len(fields) != 3:
            continue
        stat, status, command = fields
        row = _row(stat, status, command, group)
        if row is not None and own not in (row[1], row[2]):
            rows.append(row)
    return sorted(rows, key=lambda row: int(row[1]))


def _row(stat: str, status: str, command: str, group: str) -> tuple[str, ...] | None:
    # From the end: a process gives itself a name, with whatever is in it.
    match, uid = _STAT.fullmatch(stat.removesuffix(group).rstrip("\n")), _UID.search(status)
    if match is None or uid is None or not stat.endswith(group):
        return None
    pid, name, state, parent, rest = match.groups()
    numbers: list[Any] = rest.split()
    # utime and stime are the 14th and 15th of proc(5), which begin at the 5th here.
    seconds = (int(numbers[9]) + int(numbers[10])) // _TICKS
    words = " ".join(_printable(command).split()) or f"[{_printable(name)}]"
    time = f"{seconds // 60}:{seconds % 60:02}"
    return uid[1], pid, parent, state, time, words


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)
