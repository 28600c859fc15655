"""Loop devices for tests, which nothing uses afterwards."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conformance import tools
from tests.patience import PATIENCE

MIB = 1 << 20

Make = Callable[..., Path]


@contextmanager
def loop_devices(place: Path) -> Iterator[Make]:
    """Makes loop devices of 16 MiB, or of so many as are asked for, with these options of losetup."""
    made: list[str] = []

    def attach(*options: str, mib: int = 16) -> Path:
        image = place / f"disk{len(made)}.img"
        with image.open("wb") as file:
            file.truncate(mib * MIB)
        words = ["losetup", "--find", "--show", *options, os.fspath(image)]
        made.append(subprocess.check_output(words, text=True).strip())
        return Path(made[-1])

    yield attach
    for path in made:
        subprocess.run(["losetup", "--detach", path], check=True)
    limit = time.monotonic() + 30 * PATIENCE
    # What looks at every device that was written to has it for a moment.
    while left := set(made) & attached():
        assert time.monotonic() < limit, f"somebody still uses {left}"
        time.sleep(0.1)


def attached() -> set[str]:
    """All loop devices that have a file."""
    listed = ["losetup", "--list", "--noheadings", "--output", "NAME"]
    return set(subprocess.check_output(listed, text=True).split())


def make_xfs(device: Path) -> None:
    """An XFS file system on a device of 320 MiB or more, by Debian's own program."""
    root = tools.debian_packages(["xfsprogs", "libinih1", "liburcu8"])
    libraries = ":".join(f"{root}/{place}/{os.uname().machine}-linux-gnu" for place in ("lib", "usr/lib"))
    program = next(path for path in (root / "sbin/mkfs.xfs", root / "usr/sbin/mkfs.xfs") if path.exists())
    subprocess.run([program, "-q", device], check=True, env={**os.environ, "LD_LIBRARY_PATH": libraries})


def backing(device: Path) -> Path:
    """The file behind a loop device."""
    return Path(Path(f"/sys/block/{device.name}/loop/backing_file").read_text().strip())


def is_free(device: Path) -> bool:
    """Whether nobody has claimed a block device."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))
    except OSError:
        return False
    return True
