"""The command ``orlop``. Each command imports what it needs, so that ``orlop --help`` stays quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer

from orlop.cli.groups import container, health, image, look, nouns, pod, running, system, tenants
from orlop.cli.groups import volume as volume_group
from orlop.cli.parameters import (
    ConfigFile,
    EventFormat,
    Format,
    FormatChoice,
    Json,
    LongFilter,
    Name,
    PodName,
    Socket,
    Target,
)

app = typer.Typer(
    name="orlop",
    help="Containers in virtual machines: run and look after them, and the machine they run on.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
guest_app = typer.Typer(
    rich_markup_mode=None, help="The guest image that VMs start from.", no_args_is_help=True
)
app.add_typer(guest_app, name="guest")
node_app = typer.Typer(
    rich_markup_mode=None, help="Make this machine a Kubernetes node.", no_args_is_help=True
)
app.add_typer(node_app, name="node")
app.add_typer(running.app)
app.add_typer(look.app)
app.add_typer(container.app)
app.add_typer(image.app)
app.add_typer(nouns.images, name="image")
app.add_typer(nouns.containers, name="container")
app.add_typer(pod.app, name="pod")
app.add_typer(health.app, name="healthcheck")
app.add_typer(system.app, name="system")
app.add_typer(volume_group.app, name="volume")
app.add_typer(tenants.app, name="tenants")


def _end(job: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command's coroutine, and end with the exit code that it returns."""
    from orlop.cli import session

    raise typer.Exit(session.run_async(job))


@app.command()
def attach(
    name: Name,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Hand stdin through.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="It was given a terminal.")] = False,
    socket: Socket = "",
) -> None:
    """Show what a container writes from now on, until it ends. Its exit code becomes ours."""
    from orlop.cli import containers

    _end(partial(containers.attach_command, socket, name, interactive=interactive, tty=tty))


@app.command()
def cp(
    source: Annotated[str, typer.Argument(help="CONTAINER:/PATH, or a path here.", show_default=False)],
    target: Annotated[str, typer.Argument(help="A path here, or CONTAINER:/PATH.", show_default=False)],
    socket: Socket = "",
) -> None:
    """Copy files into a container, or out of it. Its image must have tar."""
    from orlop.cli import copying, session

    session.run_async(lambda: copying.cp_command(socket, source, target))


@app.command("port-forward")
def port_forward(
    name: Name,
    ports: Annotated[list[str], typer.Argument(help="[LOCAL:]PORT, 0 for any free one.", show_default=False)],
    socket: Socket = "",
) -> None:
    """Let ports of this machine's loopback lead into a pod, until interrupted."""
    from orlop.cli import containers, session

    session.run_async(lambda: containers.port_forward_command(socket, name, ports))


@app.command()
def csi(config: ConfigFile = None) -> None:
    """Serve named volumes to a cluster whose pods another runtime runs; orlopd does that itself."""
    from orlop.cli.csi import csi_command

    csi_command(config)


@app.command()
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens.")] = False,
    filter: LongFilter = None,  # noqa: A002 - the option's name
    format: EventFormat = "",  # noqa: A002 - the option's name
    socket: Socket = "",
) -> None:
    """What happened to the pods and containers that are here."""
    from orlop.cli import session
    from orlop.cli.observe.events import Telling, events_command

    telling = Telling(format, filter or ())
    session.run_async(lambda: events_command(socket, telling, follow=follow))


@app.command()
def debug(
    pod: PodName,
    target: Target = None,
    format: Format = FormatChoice.text,  # noqa: A002 - the option's name
    socket: Socket = "",
) -> None:
    """All that is known of a pod in one archive: console, steps, logs, figures. It has its secrets in it."""
    from orlop.cli import session
    from orlop.cli.observe.bundle import debug_command

    as_json = format is FormatChoice.json
    session.run_async(lambda: debug_command(socket, pod, target, as_json=as_json))


@app.command()
def report(
    pod: PodName,
    target: Target = None,
    format: Format = FormatChoice.text,  # noqa: A002 - the option's name
    socket: Socket = "",
) -> None:
    """A page that draws where the time of a pod's start went; as JSON, the steps themselves."""
    from orlop.cli import session
    from orlop.cli.observe.waterfall import report_command

    as_json = format is FormatChoice.json
    session.run_async(lambda: report_command(socket, pod, target, as_json=as_json))


@app.command()
def doctor(config: ConfigFile = None, as_json: Json = False) -> None:
    """Check that a pod could run on this machine; exit code 1 when not."""
    from orlop.cli.doctor import doctor_command

    _end(lambda: doctor_command(config, as_json=as_json))


@app.command()
def demo(
    handler: Annotated[str, typer.Option("--handler", help="vm or process.")] = "vm",
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the scratch directory (to look at logs).")
    ] = False,
) -> None:
    """Make an image, serve it, pull it and run it in a VM, with a private daemon. Leaves nothing behind."""
    from orlop.cli.demo.command import demo_command

    _end(lambda: demo_command(handler, keep=keep))


@guest_app.command("build")
def guest_build(
    config: ConfigFile = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if nothing changed.")] = False,
) -> None:
    """Build the guest image from packages of the distribution, which are unpacked, not installed."""
    from orlop.cli import session
    from orlop.cli.guest import build_command

    session.run_async(lambda: build_command(config, force=force))


@guest_app.command("list")
def guest_list(config: ConfigFile = None) -> None:
    """The guest images that are here."""
    from orlop.cli import session
    from orlop.cli.guest import list_command

    session.run_async(lambda: list_command(config))


Root = Annotated[Path, typer.Option("--root", help="Where the machine's file system is.")]


@node_app.command("install")
def node_install(
    root: Root = Path("/"),
    package: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time
        typer.Option("--package", help="Orlop's Debian package, to be installed there.", show_default=False),
    ] = None,
    kubelet: Annotated[
        bool, typer.Option("--kubelet", help="Let the kubelet use Orlop; the other runtime's pods end.")
    ] = False,
) -> None:
    """Install Orlop on a node: beside its runtime, or as it."""
    from orlop.cli import session
    from orlop.cli.node.host import NodeHost
    from orlop.cli.node.install import install_command

    session.run_async(lambda: install_command(NodeHost(root), package=package, as_runtime=kubelet))


@node_app.command("rollback")
def node_rollback(root: Root = Path("/")) -> None:
    """Give the node its runtime back. Orlop's pods end; its files and images stay."""
    from orlop.cli import session
    from orlop.cli.node.host import NodeHost
    from orlop.cli.node.install import rollback_command

    session.run_async(lambda: rollback_command(NodeHost(root)))


@node_app.command("switch")
def node_switch() -> None:
    """Exchange the kubelet's runtime for what it is told to use; orlop-switch.service runs this."""
    from orlop.cli import session
    from orlop.cli.node.host import NodeHost
    from orlop.cli.node.switch import switch_command

    session.run_async(lambda: switch_command(NodeHost(Path("/"))))


def main() -> None:
    """Entry point: a failure is one sentence on stderr."""
    from orlop.cli.problems import CliError
    from orlop.errors import InvalidArgument

    try:
        raise SystemExit(_ran(sys.argv[1:]))
    except CliError as error:
        print(f"orlop: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except InvalidArgument as error:
        # What the daemon finds wrong comes as a CliError: this is the command line itself.
        print(f"orlop: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        # The reader of our output has gone (`orlop logs | head`).
        sys.stderr.close()
        raise SystemExit(141) from None


def _ran(words: list[str]) -> int:
    try:
        return app(words, prog_name="orlop", standalone_mode=False) or 0
    except typer.Abort:
        return 1
    except Exception as error:
        show = getattr(error, "show", None)
        if show is None:
            raise
        # Words that cannot be understood, in the terms of typer.
        from orlop.cli.missing import explain
        from orlop.cli.problems import CliError

        if said := explain(error, words):
            raise CliError(said, exit_code=2) from None
        show()
        return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
