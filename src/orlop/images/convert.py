"""The child process that turns one layer into an EROFS image.

It runs apart from the daemon, at low priority and with bounded memory: unpacking is processor work
on hostile input. The blob comes in on standard input, exactly as many bytes as the manifest says; the
image is written to a path that must not exist. Standard output carries one JSON object a line:
``{"read": N}`` now and then, and at the end ``{"done": {...}}`` or ``{"failed": KIND, "message": TEXT}``
with KIND one of :data:`KINDS`.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import io
import json
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

from orlop.images.erofs import ErofsWriter
from orlop.images.inflate import CutOff, LayerStream
from orlop.images.tarstream import ArchiveError, TarReader, TooLarge
from orlop.images.tree import Tree

KINDS = ("archive", "cut-off", "digest", "full", "too-large", "system")
MAX_ENTRIES = 1_000_000
MAX_MEMORY = 3 << 30
NICE = 5

_PIPE_SIZE = 1 << 20
_WRITE_BUFFER = 1 << 20
_REPORT_EVERY = 0.1


class WrongDigest(Exception):
    """The bytes are not those that the manifest or the configuration names."""


def convert(source: int, output: Path, *, size: int, digest: str, diff_id: str, limit: int) -> dict[str, int]:
    """Convert the blob read from ``source``; returns what was made. The caller removes a partial output."""
    stream = LayerStream(source, size=size, limit=limit, progress=_Reporter())
    reader = TarReader(stream, max_entries=MAX_ENTRIES)
    tree = Tree()
    with io.BufferedWriter(io.FileIO(output, "xb"), _WRITE_BUFFER) as file:
        writer = ErofsWriter(file, limit=limit + (limit >> 2) + (64 << 20))
        for entry in reader:
            node = tree.add(entry)
            if node is None:
                continue
            if entry.sparse is None:
                writer.store(node, reader.body())
            else:
                writer.store_sparse(node, entry.sparse, reader.body())
        for what, actual, expected in (
            ("layer", stream.digest, digest),
            ("layer's content", stream.diff_id, diff_id),
        ):
            if actual != expected:
                raise WrongDigest(f"the {what} has the digest {actual} instead of {expected}")
        tree.finish()
        uuid = hashlib.sha256(diff_id.encode()).digest()[:16]
        image = writer.finish(tree.root, uuid=uuid)
    return {"size": image, "entries": reader.entries, "plain": stream.plain_bytes}


class _Reporter:
    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, count: int, ended: bool) -> None:
        now = time.monotonic()
        if ended or now - self._last >= _REPORT_EVERY:
            self._last = now
            say(read=count)


def say(**fields: object) -> None:
    """One line to the daemon."""
    os.write(1, json.dumps(fields).encode() + b"\n")


def _kind(error: Exception) -> str:
    kinds = {ArchiveError: "archive", CutOff: "cut-off", WrongDigest: "digest", TooLarge: "too-large"}
    for kind, name in kinds.items():
        if isinstance(error, kind):
            return name
    if isinstance(error, MemoryError):
        return "too-large"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "full"
    return "system"


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="orlop-convert")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--diff-id", required=True)
    parser.add_argument("--limit", type=int, required=True)
    options = parser.parse_args()
    with suppress(OSError):
        os.nice(NICE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    with suppress(OSError):
        fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    try:
        done = convert(
            0,
            options.output,
            size=options.size,
            digest=options.digest,
            diff_id=options.diff_id,
            limit=options.limit,
        )
    except Exception as error:
        message = (
            "the layer needs too much memory to unpack" if isinstance(error, MemoryError) else str(error)
        )
        say(failed=_kind(error), message=message)
        # The thread that reads may still sit in read(2): nothing is left to tidy up in this process.
        sys.stdout.flush()
        os._exit(1)
    say(done=done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
