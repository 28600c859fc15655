"""Names of images, as users write them and as registries know them.

The grammar is that of the distribution project's reference package; short names are completed
the way Docker does: ``busybox`` means ``docker.io/library/busybox:latest``.
"""

from __future__ import annotations

import re

import msgspec

from orlop.errors import InvalidArgument

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A complete name. ``tag`` is "" when only a digest was given, ``digest`` "" when only a tag was."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository, with its registry: ``docker.io/library/busybox``."""
        return f"{self.domain}/{self.path}"

    @property
    def tagged(self) -> str:
        """``name:tag``, or "" when there is a digest: then the tag says nothing."""
        return f"{self.name}:{self.tag}" if self.tag and not self.digest else ""

    def at(self, digest: str) -> str:
        """``name@digest``."""
        return f"{self.name}@{digest}"

    def __str__(self) -> str:
        return self.at(self.digest) if self.digest else self.tagged


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest of the one algorithm that is used, ``sha256:...``."""
    return _DIGEST.fullmatch(text) is not None


def parse(text: str) -> Reference:
    """Understand a name. Raises InvalidArgument, saying which part is wrong."""
    if not text:
        raise InvalidArgument("the image reference is empty")
    if len(text) > 4 * MAX_NAME:
        raise InvalidArgument(f"the image reference {text[:80]!r}... is too long")
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise InvalidArgument(f"the image reference {text!r} has no valid sha256 digest behind '@'")
    slash = rest.rfind("/")
    colon = rest.rfind(":")
    tag = ""
    if colon > slash:
        rest, tag = rest[:colon], rest[colon + 1 :]
        if not _TAG.fullmatch(tag):
            raise InvalidArgument(f"the image reference {text!r} has an invalid tag {tag!r}")
    domain, path = _split_domain(rest)
    if not _DOMAIN.fullmatch(domain):
        raise InvalidArgument(f"the image reference {text!r} has an invalid registry name {domain!r}")
    if not _PATH.fullmatch(path):
        why = "must be lower case" if _PATH.fullmatch(path.lower()) else "is invalid"
        raise InvalidArgument(f"the image reference {text!r}: the repository name {path!r} {why}")
    if len(domain) + 1 + len(path) > MAX_NAME:
        raise InvalidArgument(f"the image reference {text[:80]!r}... is longer than {MAX_NAME} characters")
    if not at and not tag:
        if _HEX.fullmatch(text):
            raise InvalidArgument(f"{text!r} is the id of an image, not a name")
        tag = DEFAULT_TAG
    return Reference(domain=domain, path=path, tag=tag, digest=digest)


def _split_domain(rest: str) -> tuple[str, str]:
    first, slash, path = rest.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    if not named:
        return DEFAULT_DOMAIN, rest if slash else f"library/{rest}"
    if first == "index.docker.io":
        first = DEFAULT_DOMAIN
    if first == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    return first, path
