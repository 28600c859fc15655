"""How much of a disk a tree takes."""

from __future__ import annotations

import os
import stat


def taken(directory: str) -> tuple[int, int]:
    """Bytes on disk and inodes below ``directory``, hard links counted once.

    What vanishes meanwhile is left out.
    """
    size = count = 0
    seen: set[int] = set()
    pending = [directory]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            is_directory = stat.S_ISDIR(found.st_mode)
            if found.st_nlink > 1 and not is_directory:
                if found.st_ino in seen:
                    continue
                seen.add(found.st_ino)
            size += found.st_blocks * 512
            count += 1
            if is_directory:
                pending.append(entry.path)
    return size, count
