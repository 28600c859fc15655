"""What can be asked through the door: each verb and its values, checked as they come in."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from orlop.errors import InvalidArgument
from orlop.value import UNREADABLE

Id = Annotated[str, Meta(pattern=r"\A[\w+.-]{1,1024}\Z")]
AbsolutePath = Annotated[str, Meta(pattern=r"\A/[^\0]*\Z", max_length=4096)]
Pid = Annotated[int, Meta(ge=1, le=1 << 22)]


class Question(msgspec.Struct, frozen=True, kw_only=True, tag_field="verb", forbid_unknown_fields=True):
    """Base of the questions. ``root`` is the caller's ``--root``: each has containers of its own."""

    root: AbsolutePath

    @property
    def verb(self) -> str:
        """What :class:`orlop.oci.bundles.Bundles` calls it."""
        return str(self.__struct_config__.tag)


class About(Question, frozen=True):
    """Base of those about one container."""

    id: Id


class StandIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The process that stands in: its number, when it began, and which of its streams are somebody's."""

    pid: Pid
    since: Annotated[int, Meta(ge=1)]
    stdin: bool = False


class ToCreate(About, frozen=True, tag="create"):
    """Make a container of the bundle; ``config`` is the text of its config.json."""

    bundle: AbsolutePath
    config: str
    stand_in: StandIn
    systemd_cgroup: bool = False


class ToStart(About, frozen=True, tag="start"):
    """Run its process."""


class ToState(About, frozen=True, tag="state"):
    """Its state as the specification has it."""


class ToKill(About, frozen=True, tag="kill"):
    """Send it a signal, a name or a number."""

    signal: Annotated[str, Meta(max_length=32)]


class ToPause(About, frozen=True, tag="pause"):
    """Stop its processes where they are."""


class ToResume(About, frozen=True, tag="resume"):
    """Let them go on."""


class ToDelete(About, frozen=True, tag="delete"):
    """Remove it."""

    force: bool = False


class ToExec(About, frozen=True, tag="exec"):
    """Run one more process in it, as the text of its document says."""

    process: str
    stand_in: StandIn


class ToUpdate(About, frozen=True, tag="update"):
    """Change its limits, as the text of their document says."""

    resources: str


class ToPs(About, frozen=True, tag="members"):
    """The processes of the host that are the container's."""


class ToStats(About, frozen=True, tag="stats"):
    """What it uses."""


class ToList(Question, frozen=True, tag="states"):
    """All containers, by their states."""


AnyQuestion = (
    ToCreate | ToStart | ToState | ToKill | ToPause | ToResume | ToDelete | ToExec | ToUpdate | ToPs | ToStats
    | ToList
)  # fmt: skip

_decoder: msgspec.json.Decoder[AnyQuestion] = msgspec.json.Decoder(AnyQuestion)


def parse(data: bytes) -> AnyQuestion:
    """Raises InvalidArgument."""
    try:
        return _decoder.decode(data)
    except UNREADABLE as error:
        if "`$.id`" in str(error):
            raise InvalidArgument(
                "invalid container ID format: letters, digits and _+.- are allowed"
            ) from error
        raise InvalidArgument(f"the question is not valid: {error}") from error
