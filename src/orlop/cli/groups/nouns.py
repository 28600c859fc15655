"""``orlop image ls`` and ``orlop container ls``: the same commands by podman's other names for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from orlop.cli.groups import container, image, look, pod, running
from orlop.cli.parameters import PASS_THROUGH, ImageName, Name, Names, PodName, ShortFormat, Socket

images = typer.Typer(rich_markup_mode=None, help="What is done with images.", no_args_is_help=True)
containers = typer.Typer(rich_markup_mode=None, help="What is done with containers.", no_args_is_help=True)


@images.command("exists")
def image_exists(
    name: ImageName,
    socket: Socket = "",
) -> None:
    """Exit code 0 when the image is here, 1 when not."""
    from orlop.cli import images as commands
    from orlop.cli import session

    raise typer.Exit(session.run_async(lambda: commands.exists_command(socket, name)))


@containers.command("exists")
def container_exists(
    name: Name,
    socket: Socket = "",
) -> None:
    """Exit code 0 when there is such a container, 1 when not."""
    from orlop.cli import containers as commands
    from orlop.cli import session

    raise typer.Exit(session.run_async(lambda: commands.exists_command(socket, name)))


def _inspect(kind: look.KindChoice) -> Callable[[list[str], str, str], None]:
    def inspect(names: Names, format: ShortFormat = "", socket: Socket = "") -> None:  # noqa: A002
        look.inspect(names, format, kind, socket)

    inspect.__doc__ = look.inspect.__doc__
    return inspect


def _named(app: typer.Typer, **commands: Callable[..., Any]) -> None:
    for name, command in commands.items():
        app.command(name)(command)


_named(
    images,
    ls=image.images,
    list=image.images,
    pull=image.pull,
    rm=image.rmi,
    tag=image.tag,
    untag=image.untag,
    inspect=_inspect(look.KindChoice.image),
    load=image.load,
    save=image.save,
)
images.command("import")(image.import_)
for _name, _command in (("run", running.run), ("exec", container.exec_)):
    containers.command(_name, context_settings=PASS_THROUGH)(_command)
_named(
    containers,
    ls=look.ps,
    list=look.ps,
    ps=look.ps,
    inspect=_inspect(look.KindChoice.container),
    diff=look.diff,
    logs=look.logs,
    wait=look.wait,
    stats=look.stats,
    kill=container.kill,
    pause=container.pause,
    unpause=container.unpause,
    rename=container.rename,
    restart=container.restart,
    port=container.port,
    stop=container.stop,
    rm=container.rm,
)
_named(pod.app, list=pod.list_, ps=pod.list_, inspect=_inspect(look.KindChoice.pod))


@pod.app.command("exists")
def pod_exists(
    name: PodName,
    socket: Socket = "",
) -> None:
    """Exit code 0 when there is such a pod, 1 when not."""
    from orlop.cli import pods as commands
    from orlop.cli import session

    raise typer.Exit(session.run_async(lambda: commands.exists_command(socket, name)))
