"""``pull``, ``images``, ``rmi``."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import typer

from orlop.cli import filters, output
from orlop.cli.formats import Age, Bytes, Id, Printer, Row, Shape
from orlop.cli.problems import CliError
from orlop.client import credentials, images, session
from orlop.client.calls import CriClient
from orlop.client.node import Node
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument, NotFound


def split_credentials(text: str) -> pb.AuthConfig | None:
    """``USER:PASSWORD`` as the daemon wants it."""
    if not text:
        return None
    user, colon, password = text.partition(":")
    if not colon:
        raise CliError("write the credentials as USER:PASSWORD", exit_code=2)
    return pb.AuthConfig(username=user, password=password)


async def pull(client: CriClient, reference: str, *, credentials: str = "", quiet: bool = False) -> str:
    """Pull an image and return its id. Shows a bar when stderr is a terminal."""
    auth = split_credentials(credentials)
    if not quiet and not sys.stderr.isatty():
        print(f"Pulling {reference}", file=sys.stderr, flush=True)
    if quiet or not sys.stderr.isatty():
        return await images.pull(client, reference, auth)
    with output.bar(f"Pulling {reference}") as show:
        return await images.pull(client, reference, auth, progress=show)


async def pull_command(socket: str, reference: str, credentials: str, quiet: bool) -> None:
    """``orlop pull``."""
    async with session.connect(socket) as client:
        print(await pull(client, reference, credentials=credentials, quiet=quiet))


SHAPE = Shape(
    headings={
        "Repository": "IMAGE",
        "Tag": "TAG",
        "ID": "IMAGE ID",
        "Size": "SIZE",
        "Digest": "DIGEST",
        "Pinned": "PINNED",
        "CreatedAt": "CREATED AT",
        "CreatedSince": "CREATED",
        "Labels": "LABELS",
    },
    columns=("Repository", "Tag", "ID", "Size"),
)
FILTERS = ("reference", "dangling", "id", "label")
_OF_STATUS = frozenset({"CreatedAt", "CreatedSince", "Labels"})


def checked_filters(texts: Sequence[str]) -> filters.Filters:
    """What ``--filter`` says. Raises InvalidArgument."""
    found = filters.parse(texts, FILTERS)
    for value in found.get("dangling", ()):
        if value not in ("true", "false"):
            raise InvalidArgument(f"--filter dangling={value}: write true or false")
    return found


def _split_tag(tag: str) -> tuple[str, str]:
    name, _, label = tag.rpartition(":")
    return (name, label) if name and "/" not in label else (tag, "")


def referred(image: pb.Image, pattern: str) -> bool:
    """Whether a name matches, with or without its tag, its registry and the path before its last part."""
    for tag in image.repo_tags:
        for name in (tag, _split_tag(tag)[0]):
            parts = name.split("/")
            ends = ["/".join(parts[start:]) for start in range(len(parts))]
            if any(fnmatch.fnmatchcase(end, pattern) for end in ends):
                return True
    return False


async def list_command(
    socket: str, printer: Printer, wanted: filters.Filters, *, quiet: bool, as_json: bool
) -> None:
    """``orlop images``."""
    async with session.connect(socket) as client:
        answer = await client.images.list_images(pb.ListImagesRequest())
        if as_json:
            output.print_message(answer)
            return
        asked = "label" in wanted or (not quiet and _OF_STATUS & printer.fields)
        made = {one.id: await _image_spec(client, one.id) if asked else {} for one in answer.images}
    tests: dict[str, filters.Test] = {
        "reference": referred,
        "dangling": lambda one, text: (not one.repo_tags) is (text == "true"),
        "id": lambda one, text: one.id.removeprefix("sha256:").startswith(text.removeprefix("sha256:")),
        "label": lambda one, text: filters.labelled(_labels(made[one.id]), text),
    }
    found = [one for one in answer.images if filters.matches(one, wanted, tests)]
    if quiet:
        for one in found:
            print(one.id)
        return
    rows = [row for one in found for row in _rows(one, made[one.id])]
    printer.show(sorted(rows, key=lambda row: (row["Repository"], row["Tag"], row["ID"])))


async def _image_spec(client: CriClient, image_id: str) -> Mapping[str, Any]:
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image_id), verbose=True)
    answer = await client.images.image_status(request)
    told: Mapping[str, Any] = json.loads(answer.info.get("info", "{}")).get("imageSpec", {})
    return told


def _labels(spec: Mapping[str, Any]) -> Mapping[str, str]:
    found: Mapping[str, str] = spec.get("config", {}).get("Labels", {})
    return found


def _rows(image: pb.Image, spec: Mapping[str, Any]) -> list[Row]:
    """A row for each name."""
    names = [_split_tag(tag) for tag in image.repo_tags]
    if not names:
        names = [(digest.partition("@")[0], "") for digest in image.repo_digests[:1]] or [("", "")]
    created = spec.get("created", "")
    common = {
        "ID": Id(image.id),
        "Size": Bytes(image.size),
        "Digest": next((one.partition("@")[2] for one in image.repo_digests), ""),
        "Pinned": image.pinned,
        "CreatedAt": created,
        "CreatedSince": _since(created),
        "Labels": _labels(spec),
    }
    return [{"Repository": name, "Tag": tag, **common} for name, tag in names]


def _since(created: str) -> str:
    try:
        return str(Age(datetime.fromisoformat(created).timestamp()))
    except ValueError:
        return ""


async def login_command(registry: str, user: str, password: str, *, from_stdin: bool, secure: bool) -> None:
    """``orlop login``."""
    if from_stdin:
        password = sys.stdin.read().rstrip("\r\n")
    elif not password and not sys.stdin.isatty():
        raise CliError("stdin is no terminal: send the password in with --password-stdin", exit_code=2)
    user = user or str(typer.prompt("Username", err=True))
    password = password or str(typer.prompt("Password", err=True, hide_input=True))
    path = await credentials.log_in(registry, user, password, secure=secure)
    print(f"Login Succeeded: the password is in {path}")


async def logout_command(registry: str) -> None:
    """``orlop logout``."""
    await credentials.log_out(registry)
    print(f"Removed login credentials for {registry or 'all registries'}")


async def remove_command(socket: str, references: list[str], *, force: bool, missing_ok: bool) -> None:
    """``orlop rmi``: by a name that is not the last one, that name only."""
    async with session.connect(socket) as client:
        for reference in references:
            found = await _found(client, reference)
            if found is None and missing_ok:
                continue
            if found is None:
                raise CliError(f"no image {reference}: `orlop images` lists them")
            await _remove(client, reference, found, force=force)
            print(reference)


async def _remove(client: CriClient, reference: str, found: pb.Image, *, force: bool) -> None:
    try:
        await Node(client).untag(reference, with_the_last=True)
    except (NotFound, InvalidArgument):  # an id, or a digest
        if len(found.repo_tags) > 1 and not force:
            names = ", ".join(found.repo_tags)
            raise CliError(f"the image {reference} has several names, {names}: add --force for all") from None
        await client.images.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=found.id)))


async def tag_command(socket: str, image: str, names: Sequence[str]) -> None:
    """``orlop tag``."""
    async with session.connect(socket) as client:
        for name in names:
            await Node(client).tag(image, name)


async def untag_command(socket: str, image: str, names: Sequence[str]) -> None:
    """``orlop untag``: names of an image, all of them if none is named."""
    async with session.connect(socket) as client:
        found = await _found(client, image)
        if found is None:
            raise CliError(f"no image {image}: `orlop images` lists them")
        for name in names:
            other = await _found(client, name)
            if other is None or other.id != found.id:
                raise CliError(f"the image {image} is not called {name}, but {', '.join(found.repo_tags)}")
        for name in names or found.repo_tags:
            await Node(client).untag(name)


async def exists_command(socket: str, image: str) -> int:
    """``orlop image exists``: 0 or 1."""
    async with session.connect(socket) as client:
        return 1 if await _found(client, image) is None else 0


async def _found(client: CriClient, reference: str) -> pb.Image | None:
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image=reference))
    answer = await client.images.image_status(request)
    return answer.image if answer.HasField("image") else None
