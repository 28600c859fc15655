"""What is done with images: fetched, loaded, saved, listed, removed."""

from __future__ import annotations

from typing import Annotated

import typer

from orlop.cli.parameters import (
    Filter,
    FormatText,
    ImageName,
    ImageNames,
    Json,
    Many,
    Quiet,
    Socket,
    Whole,
    YesNo,
)

app = typer.Typer(rich_markup_mode=None)


@app.command()
def pull(
    image: Annotated[str, typer.Argument(help="The image, by tag or digest.")],
    credentials: Annotated[
        str, typer.Option("--credentials", "--creds", help="USER:PASSWORD for its registry.")
    ] = "",
    quiet: Quiet = False,
    socket: Socket = "",
) -> None:
    """Fetch an image from its registry."""
    from orlop.cli import images as commands
    from orlop.cli import session

    session.run_async(lambda: commands.pull_command(socket, image, credentials, quiet))


@app.command()
def images(
    name: Annotated[
        str, typer.Argument(help="Those of this name, which may have a *.", show_default=False)
    ] = "",
    *,
    filter: Filter = None,  # noqa: A002 - the option's name
    no_trunc: Whole = False,
    quiet: Quiet = False,
    format: FormatText = "",  # noqa: A002 - the option's name
    as_json: Json = False,
    socket: Socket = "",
) -> None:
    """List the images that are here."""
    from orlop.cli import formats, session
    from orlop.cli import images as commands

    printer = formats.Printer(commands.SHAPE, format, whole=no_trunc)
    named = [f"reference={name}"] if name else []
    wanted = commands.checked_filters([*named, *(filter or ())])
    session.run_async(lambda: commands.list_command(socket, printer, wanted, quiet=quiet, as_json=as_json))


@app.command()
def rmi(
    names: ImageNames,
    force: Annotated[bool, typer.Option("--force", "-f", help="By its id, with all of its names.")] = False,
    ignore: Annotated[bool, typer.Option("--ignore", "-i", help="Also where there is none.")] = False,
    socket: Socket = "",
) -> None:
    """Remove images. One of several names goes alone; the image goes with the last."""
    from orlop.cli import images as commands
    from orlop.cli import session

    session.run_async(lambda: commands.remove_command(socket, names, force=force, missing_ok=ignore))


@app.command()
def tag(
    image: ImageName,
    names: Annotated[list[str], typer.Argument(help="More names for it.", show_default=False)],
    socket: Socket = "",
) -> None:
    """Give an image more names, which leave the images that had them."""
    from orlop.cli import images as commands
    from orlop.cli import session

    session.run_async(lambda: commands.tag_command(socket, image, names))


@app.command()
def untag(
    image: ImageName,
    names: Annotated[Many, typer.Argument(help="Names of it; all else.", show_default=False)] = None,
    socket: Socket = "",
) -> None:
    """Take names away from an image, which stays: by its id when it has none left."""
    from orlop.cli import images as commands
    from orlop.cli import session

    session.run_async(lambda: commands.untag_command(socket, image, names or ()))


@app.command()
def load(
    file: Annotated[
        str, typer.Option("--input", "-i", help="A file, the directory of an OCI layout, or stdin.")
    ] = "-",
    name: Annotated[str, typer.Option("--name", help="One more name, for an image that is alone.")] = "",
    quiet: Quiet = False,
    socket: Socket = "",
) -> None:
    """Take images from an archive: docker save, podman save, OCI layout; packed with gzip or zstd or not."""
    from orlop.cli import archives, session

    session.run_async(lambda: archives.load_command(socket, file, name, quiet))


@app.command()
def save(
    images: ImageNames,
    file: Annotated[str, typer.Option("--output", "-o", help="A file, or stdout.")] = "-",
    quiet: Quiet = False,
    socket: Socket = "",
) -> None:
    """Write images to an archive that docker, podman and skopeo read: an OCI layout. Their ids change."""
    from orlop.cli import archives, session

    session.run_async(lambda: archives.save_command(socket, file, images, quiet))


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="A file made by tar, or - for stdin.", show_default=False)],
    name: Annotated[str, typer.Argument(help="What the image is called.", show_default=False)] = "",
    change: Annotated[
        Many, typer.Option("--change", "-c", help="A line of a Dockerfile, for example 'CMD [\"sh\"]'.")
    ] = None,
    quiet: Quiet = False,
    socket: Socket = "",
) -> None:
    """Make an image of a file system, for example of what `podman export` writes."""
    from orlop.cli import archives, session

    session.run_async(lambda: archives.import_command(socket, file, name, change or (), quiet))


@app.command()
def login(
    registry: Annotated[
        str, typer.Argument(help="For example quay.io or localhost:5000.", show_default=False)
    ],
    user: Annotated[str, typer.Option("--username", "-u", help="Asked for else.")] = "",
    password: Annotated[
        str, typer.Option("--password", "-p", help="All users of this machine can see it.")
    ] = "",
    from_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read it from stdin.")] = False,
    tls_verify: Annotated[
        YesNo, typer.Option("--tls-verify", help="false: plain http will do.")
    ] = YesNo.true,
) -> None:
    """Keep a password for a registry, where podman and skopeo keep theirs."""
    from orlop.cli import images as commands
    from orlop.cli import session

    session.run_async(
        lambda: commands.login_command(
            registry, user, password, from_stdin=from_stdin, secure=tls_verify is YesNo.true
        )
    )


@app.command()
def logout(
    registry: Annotated[str, typer.Argument(help="A registry.", show_default=False)] = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="All registries.")] = False,
) -> None:
    """Forget the password for a registry."""
    from orlop.cli import images as commands
    from orlop.cli import session
    from orlop.cli.problems import CliError

    if bool(registry) == everything:
        raise CliError("name a registry, or give --all", exit_code=2)
    session.run_async(lambda: commands.logout_command(registry))
