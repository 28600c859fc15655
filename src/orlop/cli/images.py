"""``pull``, ``images``, ``rmi``."""

from __future__ import annotations

import sys

import typer

from orlop.cli import output
from orlop.cli.problems import CliError
from orlop.cli.units import show_size
from orlop.client import credentials, images, session
from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb


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


def _split_tag(tag: str) -> tuple[str, str]:
    name, _, label = tag.rpartition(":")
    return (name, label) if name and "/" not in label else (tag, "")


async def list_command(socket: str, quiet: bool, as_json: bool) -> None:
    """``orlop images``."""
    async with session.connect(socket) as client:
        answer = await client.images.list_images(pb.ListImagesRequest())
    if as_json:
        output.print_message(answer)
        return
    rows = []
    for image in answer.images:
        short = image.id.removeprefix("sha256:")[:13]
        if quiet:
            print(image.id)
            continue
        names = [_split_tag(tag) for tag in image.repo_tags]
        if not names:
            names = [(digest.partition("@")[0], "-") for digest in image.repo_digests[:1]] or [("-", "-")]
        rows += [(name, tag, short, show_size(image.size)) for name, tag in names]
    if not quiet:
        output.table(("IMAGE", "TAG", "IMAGE ID", "SIZE"), sorted(rows))


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


async def remove_command(socket: str, references: list[str]) -> None:
    """``orlop rmi``."""
    async with session.connect(socket) as client:
        for reference in references:
            if not await images.present(client, reference):
                raise CliError(f"no image {reference}: `orlop images` lists them")
            await client.images.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))
            print(reference)
