"""The one error model of Orlop.

Every failure that a caller can act on is an :class:`OrlopError`. Its class says what kind of
failure it is; :attr:`OrlopError.code` is the gRPC status code it becomes at the edge
(``orlop.rpc`` is the only place that does so). The message names the object, the cause and,
where there is one, the remedy, in one sentence.

``asyncio.CancelledError`` is never wrapped in any of these.
"""

from __future__ import annotations

import errno

# The name tells type checkers: importing typing would cost commands and guests a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

SHORT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN})
"""Numbers (errno(3)) with which the system says that something of it ran out."""


class Code:
    """gRPC status codes (https://grpc.io/docs/guides/status-codes/), which are numbers.

    No enumeration: what that imports takes a command that starts for each call a quarter of its time.
    """

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


NAMES = {number: name for name, number in vars(Code).items() if name.isupper()}
"""What each of the numbers is called."""


class OrlopError(Exception):
    """Base of every error that Orlop raises on purpose."""

    code: ClassVar[int] = Code.UNKNOWN


class InvalidArgument(OrlopError):
    """The request itself is wrong; sending it again will not help."""

    code = Code.INVALID_ARGUMENT


class CannotRun(InvalidArgument):
    """The program of a container or of an exec is missing, is none, or may not be run by its user."""


class NotFound(OrlopError):
    """The named object does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(OrlopError):
    """An object of that name exists and is another one."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(OrlopError):
    """The caller, or this daemon, may not do that."""

    code = Code.PERMISSION_DENIED


class Unauthenticated(OrlopError):
    """A registry wants credentials that were missing or wrong."""

    code = Code.UNAUTHENTICATED


class ResourceExhausted(OrlopError):
    """Disk, memory, addresses or a bound of ours ran out."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(OrlopError):
    """The object is in a state, or the machine is of a kind, in which that cannot be done."""

    code = Code.FAILED_PRECONDITION


class OutOfRange(OrlopError):
    """A number, such as a size, that cannot be had here."""

    code = Code.OUT_OF_RANGE


class Aborted(OrlopError):
    """The call does not fit what came before it; the caller is to begin anew."""

    code = Code.ABORTED


class Unavailable(OrlopError):
    """Something outside (registry, plug-in, VM) did not answer; a retry may succeed."""

    code = Code.UNAVAILABLE


class NotUndone(Unavailable):
    """Something could not be taken back whole; the message names what is left, and a retry goes on."""


class DeadlineExceeded(OrlopError):
    """The time allowed for the operation ran out."""

    code = Code.DEADLINE_EXCEEDED


class Unimplemented(OrlopError):
    """Orlop does not do that (yet)."""

    code = Code.UNIMPLEMENTED


class DataLoss(OrlopError):
    """Bytes do not match their digest, or a state file is damaged."""

    code = Code.DATA_LOSS


class Internal(OrlopError):
    """An invariant of ours is broken; the message says which."""

    code = Code.INTERNAL


def of_system(error: OSError, message: str) -> OrlopError:
    """What to raise for an error of the system: ResourceExhausted where something of it ran out."""
    return (ResourceExhausted if error.errno in SHORT else FailedPrecondition)(message)
