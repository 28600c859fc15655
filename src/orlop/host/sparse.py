"""Files with holes, of which only what is not a hole is looked at."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def parts(descriptor: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of data in an open file, as SEEK_DATA of lseek(2) finds them.

    The file may be read and written to meanwhile. Raises OSError.
    """
    position, size = 0, os.fstat(descriptor).st_size
    while position < size:
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        position = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, position
