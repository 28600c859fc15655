"""The child process that turns one layer into an EROFS image, and back, or makes what repairs a stack.

It runs apart from the daemon, at low priority, and keeps nothing but its descriptors: unpacking is processor
work on hostile input, in libraries written in C. As nobody, in namespaces with an empty root, it can open
nothing and speak to nobody; memory, processor time and output are bounded.

The blob comes in on standard input, exactly as many bytes as the manifest says; the image goes to a
descriptor. Standard output carries one JSON object a line: ``{"read": N}`` now and then, and at the end
``{"done": {...}}`` or ``{"failed": KIND, "message": TEXT}`` with KIND one of :data:`KINDS`.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import BinaryIO

from orlop.host import confinement
from orlop.images.erofs import ErofsWriter
from orlop.images.erofsread import ErofsReader
from orlop.images.inflate import CutOff, LayerStream
from orlop.images.repair import build, repaired
from orlop.images.tarpack import pack
from orlop.images.tarstream import ArchiveError, TarReader, TooLarge
from orlop.images.tree import Tree

KINDS = ("archive", "cut-off", "digest", "full", "too-large", "system")
MAX_ENTRIES = 1_000_000
MAX_MEMORY = 2 << 30
NICE = 5
LEAST_SECONDS = 60
SECONDS_A_GIB = 60
"""Processor time: some ten times what it takes where it is slow."""

_PIPE_SIZE = 1 << 20
_WRITE_BUFFER = 1 << 20
_REPORT_EVERY = 0.1


class WrongDigest(Exception):
    """The bytes are not those that the manifest or the configuration names."""


def output_limit(limit: int) -> int:
    """The bytes that the image of a layer of ``limit`` bytes may have."""
    return limit + (limit >> 2) + (64 << 20)


def convert(
    source: int, output: BinaryIO, *, size: int, digest: str, diff_id: str, limit: int
) -> dict[str, int]:
    """Convert the blob read from ``source`` into ``output``, an empty file; returns what was made."""
    with LayerStream(source, size=size, limit=limit, progress=_Reporter()) as stream:
        reader = TarReader(stream, max_entries=MAX_ENTRIES)
        tree = Tree()
        writer = ErofsWriter(output, limit=output_limit(limit))
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
        image = writer.finish(tree.root, uuid=_uuid(diff_id))
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
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "too-large"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "full"
    return "system"


def main() -> int:
    """Run as a program."""
    options = _options()
    with suppress(OSError):
        os.nice(NICE)
    with suppress(OSError):
        fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    try:
        say(done=_work(options))
    except Exception as error:
        message = (
            "the layer needs too much memory to unpack" if isinstance(error, MemoryError) else str(error)
        )
        say(failed=_kind(error), message=message)
        # The thread that reads may still sit in read(2): nothing is left to tidy up in this process.
        os._exit(1)
    # What the interpreter does at its end wants more than this process may.
    os._exit(0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="orlop-convert")
    parser.add_argument("--output", type=int, required=True)
    parser.add_argument("--empty", required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--digest", default="")
    parser.add_argument("--diff-id", default="")
    parser.add_argument("--repair", type=int, nargs="+", default=[])
    parser.add_argument("--expand", action="store_true")
    parser.add_argument("--pack", type=int, default=-1)
    return parser.parse_args()


def _work(options: argparse.Namespace) -> Mapping[str, int | str]:
    hashlib.sha256(b"")  # whatever OpenSSL has yet to read
    confinement.bound(
        memory=MAX_MEMORY,
        output=output_limit(options.limit),
        seconds=LEAST_SECONDS + SECONDS_A_GIB * (options.limit >> 30),
    )
    confinement.confine(options.empty)
    with io.BufferedWriter(io.FileIO(options.output, "wb"), _WRITE_BUFFER) as output:
        if options.repair:
            return repair(options.repair, output, options.diff_id)
        if options.expand:
            return expand(0, output, size=options.size, limit=options.limit)
        if options.pack >= 0:
            with ErofsReader(options.pack) as layer:
                return {"digest": pack(layer, output)}
        return convert(
            0,
            output,
            size=options.size,
            digest=options.digest,
            diff_id=options.diff_id,
            limit=options.limit,
        )


def repair(layers: Sequence[int], output: BinaryIO, diff_id: str) -> dict[str, int]:
    """Make the layer that must stand on top of ``layers``, open files, if any must; "made" says so."""
    with ExitStack() as stack:
        root = repaired([stack.enter_context(ErofsReader(layer)) for layer in layers])
        if root is not None:
            build(root, output, uuid=_uuid(diff_id))
    return {"made": int(root is not None)}


def expand(source: int, output: BinaryIO, *, size: int, limit: int) -> dict[str, int]:
    """Write to ``output`` what a compressed stream holds, or any other as it is."""
    with LayerStream(source, size=size, limit=limit) as stream:
        while data := stream.read(_WRITE_BUFFER):
            output.write(data)
        return {"plain": stream.plain_bytes}


def _uuid(diff_id: str) -> bytes:
    return hashlib.sha256(diff_id.encode()).digest()[:16]


if __name__ == "__main__":
    sys.exit(main())
