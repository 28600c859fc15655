"""The processor time of a pod, and its containers' parts of it, as they come and go.

A guest counts by its own clock, which goes on while the host lets others run; without hardware
virtualisation it may count twice what the VM was given. So what the guest says is each container's
share, and the host says of what. Kept in a file, so that no figure falls when another daemon takes over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from orlop.value import UNREADABLE, Value


class CpuShare(Value, frozen=True):
    """A container's time: as the guest counts it, and as much of it as was the VM's (ns)."""

    counted: int = 0
    given: int = 0


class _Book(Value, frozen=True):
    shares: dict[str, CpuShare] = msgspec.field(default_factory=dict)
    ended: int = 0


class CpuLedger:
    """See the module. Reading and writing take tens of microseconds on the tmpfs that the file is on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._book: _Book | None = None

    def divide(self, counted: Mapping[str, int], total: int, existing: Collection[str]) -> dict[str, int]:
        """Each container's part of ``total``, the time that the pod has used; never less than before.

        ``counted`` is what is said of those that run. A container that is not ``existing`` any more
        keeps its part, without its name.
        """
        book = self._read()
        grown = {
            key: max(0, value - book.shares.get(key, CpuShare()).counted) for key, value in counted.items()
        }
        left = max(0, total - self.total)
        wanted = sum(grown.values())
        shares = dict(book.shares)
        for key, more in grown.items():
            before = shares.get(key, CpuShare())
            given = more if wanted <= left else more * left // wanted
            shares[key] = CpuShare(counted=before.counted + more, given=before.given + given)
        gone = [key for key in shares if key not in existing and key not in counted]
        ended = book.ended + sum(shares.pop(key).given for key in gone)
        self._write(_Book(shares=shares, ended=ended))
        return {key: shares[key].given for key in counted}

    @property
    def total(self) -> int:
        """The parts of all containers there ever were."""
        book = self._read()
        return book.ended + sum(share.given for share in book.shares.values())

    def _read(self) -> _Book:
        if self._book is None:
            try:
                self._book = msgspec.json.decode(self._path.read_bytes(), type=_Book)
            except (OSError, *UNREADABLE):
                self._book = _Book()
        return self._book

    def _write(self, book: _Book) -> None:
        if book == self._book:
            return
        self._book = book
        aside = self._path.with_suffix(".new")
        try:
            aside.write_bytes(msgspec.json.encode(book))
            aside.replace(self._path)
        except OSError:
            return  # the pod is being removed; the figures are right as long as this daemon lives
