"""Volumes in the words people write: paths of this machine, named volumes, memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from orlop.client.launch import MemoryMount, NamedMount, SocketMount
from orlop.client.texts import parse_size, utf8
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument

_KEY = re.compile(r"(type|source|src|target|dst|destination|readonly|ro|tmpfs-size|tmpfs-mode)=")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_OCTAL = re.compile(r"[0-7]{1,4}")
_KINDS = {
    "bind": {"type", "source", "target", "readonly"},
    "volume": {"type", "source", "target", "readonly"},
    "tmpfs": {"type", "target", "readonly", "tmpfs-size", "tmpfs-mode"},
}
_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_FORBIDDEN = ("nodev", "noexec", "nosuid")

Mount = pb.Mount | SocketMount | NamedMount | MemoryMount


def parse_volume(text: str) -> Mount:
    """``HOST:CONTAINER[:OPTIONS]``, where HOST is a path, or the name of a volume if no slash is in it.

    Options are ro or rw, nodev, noexec, nosuid, z or Z, which label files where the host has SELinux, and
    sockets for a directory in which the container has sockets for the host. Or as :func:`parse_mount` has it.
    """
    if _KEY.match(text):
        return parse_mount(text)
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0]:
        raise InvalidArgument(f"{text}: write HOSTPATH:/PATH/INSIDE, with :ro to forbid writing")
    options = parts[2].split(",") if len(parts) == 3 else []
    for one in options:
        if one not in ("ro", "rw", "z", "Z", "sockets", *_FORBIDDEN):
            known = f"ro, rw, z, Z, sockets, {', '.join(_FORBIDDEN)}"
            raise InvalidArgument(f"{text}: options are {known}, not {one}")
    read_only = "ro" in options
    forbidden = tuple(one for one in _FORBIDDEN if one in options)
    sockets = "sockets" in options
    if sockets and (read_only or "," in parts[1] or _VOLUME.fullmatch(parts[0])):
        raise InvalidArgument(f"{text}: sockets is for a directory of this machine that is written to")
    if _VOLUME.fullmatch(parts[0]):
        return NamedMount(parts[0], _inside(parts[1], text), read_only, forbidden)
    found = _bind(parts[0], parts[1], text, read_only=read_only)
    found.selinux_relabel = bool({"z", "Z"} & set(options))
    found.mount_options.extend(forbidden)
    return SocketMount(found) if sockets else found


def parse_mount(text: str) -> Mount:
    """``type=volume|bind,source=NAME|PATH,target=/PATH[,readonly]``, or a tmpfs with its size and mode."""
    given: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        key = _ALIASES.get(key, key)
        if key not in set().union(*_KINDS.values()) or key in given:
            known = "type=volume|bind,source=..,target=/..[,readonly]"
            raise InvalidArgument(f"{text}: write {known}, each once, not {part}")
        given[key] = value
    if given.get("readonly", "") not in ("", "true", "false"):
        raise InvalidArgument(f"{text}: readonly stands alone, or is true or false")
    kind = given.get("type", "volume")
    if kind not in _KINDS:
        raise InvalidArgument(f"{text}: the type is volume, bind or tmpfs, not {kind}")
    if wrong := sorted(given.keys() - _KINDS[kind]):
        raise InvalidArgument(f"{text}: a {kind} has no {wrong[0]}")
    read_only = "readonly" in given and given["readonly"] != "false"
    source, target = given.get("source", ""), given.get("target", "")
    if kind == "bind":
        return _bind(source, target, text, read_only=read_only)
    if kind == "tmpfs":
        size, mode = given.get("tmpfs-size", ""), given.get("tmpfs-mode", "1777")
        return _memory(target, text, size=size, mode=mode, read_only=read_only)
    if not _VOLUME.fullmatch(source):
        raise InvalidArgument(f"{text}: {source or 'nothing'} is not the name of a volume")
    return NamedMount(source, _inside(target, text), read_only)


def parse_tmpfs(text: str) -> MemoryMount:
    """``/PATH[:size=64m,mode=1777,ro,noexec,nodev,nosuid]``."""
    path, _, options = text.partition(":")
    size, mode, others = "", "1777", []
    for one in options.split(",") if options else []:
        key, sign, value = one.partition("=")
        if sign and key == "size":
            size = value
        elif sign and key == "mode":
            mode = value
        elif one in ("ro", "rw", "exec", *_FORBIDDEN):
            others.append(one)
        else:
            known = f"size=, mode=, ro, rw, {', '.join(_FORBIDDEN)}"
            raise InvalidArgument(f"{text}: a tmpfs has the options {known}, not {one}")
    forbidden = tuple(one for one in _FORBIDDEN if one in others)
    return _memory(path, text, size=size, mode=mode, read_only="ro" in others, options=forbidden)


def _memory(
    path: str, text: str, *, size: str, mode: str, read_only: bool, options: tuple[str, ...] = ()
) -> MemoryMount:
    if not _OCTAL.fullmatch(mode):
        raise InvalidArgument(f"{text}: {mode or 'nothing'} is not a mode such as 1777")
    amount = parse_size(size) if size else 0
    return MemoryMount(_inside(path, text), amount, int(mode, 8), read_only, options)


def _inside(path: str, text: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgument(f"{text}: the path inside begins with a slash, not {path or 'nothing'}")
    return utf8(path, text)


def _bind(source: str, target: str, text: str, *, read_only: bool) -> pb.Mount:
    """A path of this machine; a relative one counts from here."""
    if not source:
        raise InvalidArgument(f"{text}: no path of this machine is named")
    try:
        host = Path(source).expanduser().absolute()
        there = host.exists()
    except (RuntimeError, OSError) as error:  # no such user, a name that is too long
        raise InvalidArgument(f"{text}: {source}: {error}") from error
    if not there:
        raise InvalidArgument(f"{text}: {host} does not exist on this machine")
    inside, outside = _inside(target, text), utf8(os.fspath(host), text)
    return pb.Mount(container_path=inside, host_path=outside, readonly=read_only)
