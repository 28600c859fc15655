"""The options of `run` and `pod create`, which are many: values whose fields are the options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional, get_type_hints

import typer

from orlop.cli.parameters import Files, Many, NetworkChoice
from orlop.errors import InvalidArgument

if TYPE_CHECKING:
    from orlop.client.launch import RunOptions


@dataclass(frozen=True, kw_only=True)
class PodWords:
    """What a pod may be told."""

    publish: Annotated[Many, typer.Option("--publish", "-p", help="[HOSTIP:]HOSTPORT:PORT[/udp]")] = None
    handler: Annotated[str, typer.Option("--handler", help="vm or process; the daemon's default else.")] = ""
    hostname: Annotated[str, typer.Option("--hostname", help="The pod's name else.")] = ""
    dns: Annotated[Many, typer.Option("--dns", help="Name servers instead of the host's.")] = None
    dns_search: Annotated[Many, typer.Option("--dns-search", help="Domains to look names up in.")] = None
    dns_option: Annotated[
        Many, typer.Option("--dns-option", "--dns-opt", help="Of resolv.conf, such as ndots:2.")
    ] = None
    network: Annotated[NetworkChoice, typer.Option("--network", help="host: with --handler process.")] = (
        NetworkChoice.pod
    )
    sysctl: Annotated[Many, typer.Option("--sysctl", help="NAME=VALUE of the pod's kernel.")] = None

    @property
    def given(self) -> bool:
        """Whether a pod is told anything that is not the default."""
        return self != PodWords()


@dataclass(frozen=True, kw_only=True)
class LimitWords:
    """What both may be limited to, and how they are marked."""

    memory: Annotated[str, typer.Option("--memory", "-m", help="Limit, for example 512m.")] = ""
    cpus: Annotated[float, typer.Option("--cpus", help="Limit, for example 1.5.", min=0.0)] = 0.0
    label: Annotated[Many, typer.Option("--label", "-l", help="KEY=VALUE")] = None


@dataclass(frozen=True, kw_only=True)
class ContainerWords:
    """What a container may be told."""

    env: Annotated[Many, typer.Option("--env", "-e", help="KEY=VALUE, or KEY")] = None
    env_file: Annotated[Files, typer.Option("--env-file", help="A file with such lines.")] = None
    volume: Annotated[
        Many,
        typer.Option(
            "--volume",
            "-v",
            "--mount",
            help="HOSTPATH|NAME:/PATH[:ro|:sockets], or type=volume|bind|tmpfs,source=..,target=..",
        ),
    ] = None
    tmpfs: Annotated[Many, typer.Option("--tmpfs", help="/PATH[:size=64m,mode=1777] in memory.")] = None
    workdir: Annotated[str, typer.Option("--workdir", "-w", help="Working directory inside.")] = ""
    user: Annotated[str, typer.Option("--user", "-u", help="NAME or UID[:GID]")] = ""
    group_add: Annotated[
        list[int] | None, typer.Option("--group-add", help="A group's number, besides the user's.", min=0)
    ] = None
    entrypoint: Annotated[str, typer.Option("--entrypoint", help="Instead of the image's own.")] = ""
    cap_add: Annotated[Many, typer.Option("--cap-add", help="A capability more, or ALL.")] = None
    cap_drop: Annotated[Many, typer.Option("--cap-drop", help="A capability less, or ALL.")] = None
    privileged: Annotated[bool, typer.Option("--privileged", help="All rights, inside its VM.")] = False
    security_opt: Annotated[
        Many, typer.Option("--security-opt", help="no-new-privileges, or seccomp=unconfined|/PROFILE.")
    ] = None
    read_only: Annotated[bool, typer.Option("--read-only", help="Forbid writing to the root.")] = False
    device: Annotated[Many, typer.Option("--device", help="/dev/HOST[:/dev/INSIDE[:rwm]]")] = None
    ulimit: Annotated[Many, typer.Option("--ulimit", help="NAME=SOFT[:HARD], such as nofile=1024.")] = None
    pids_limit: Annotated[int, typer.Option("--pids-limit", help="Processes and threads.", min=0)] = 0
    cpu_shares: Annotated[
        int, typer.Option("--cpu-shares", help="Its share where processors are short.", min=0)
    ] = 0
    stop_signal: Annotated[str, typer.Option("--stop-signal", help="Instead of the image's own.")] = ""
    stop_timeout: Annotated[
        int, typer.Option("--stop-timeout", help="Seconds before it is killed.", min=-1, show_default=False)
    ] = -1
    health_cmd: Annotated[
        str, typer.Option("--health-cmd", help="A command that tells whether it is well; none for none.")
    ] = ""
    health_interval: Annotated[
        str, typer.Option("--health-interval", help="From one check to the next, 30s else; or disable.")
    ] = ""
    health_timeout: Annotated[
        str, typer.Option("--health-timeout", help="How long one may take, 30s else.")
    ] = ""
    health_retries: Annotated[
        Optional[int],  # noqa: UP045 - typer reads this at run time
        typer.Option(
            "--health-retries", help="How many must fail, 3 else.", min=1, max=1000, show_default=False
        ),
    ] = None
    health_start_period: Annotated[
        str, typer.Option("--health-start-period", help="At the beginning, in which that does not count.")
    ] = ""
    no_healthcheck: Annotated[bool, typer.Option("--no-healthcheck", help="Not even the image's own.")] = (
        False
    )
    add_host: Annotated[Many, typer.Option("--add-host", help="NAME:ADDRESS for /etc/hosts.")] = None
    init: Annotated[
        bool, typer.Option("--init", help="Have orphans collected: every pod's own init does.")
    ] = False


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that the fields of its parameters are, where those are such values."""
    hints = get_type_hints(command, include_extras=True)
    kinds: dict[str, Any] = {}
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            shown.append(parameter.replace(annotation=kind))
            continue
        kinds[name] = kind
        inner = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            assert field.default is not MISSING
            option = inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=inner[field.name],
            )
            shown.append(option)

    @functools.wraps(command)
    def gathered(**given: Any) -> None:
        values = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in kinds.items()
        }
        command(**given, **values)

    del gathered.__wrapped__
    gathered.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    gathered.__annotations__ = {one.name: one.annotation for one in shown}
    return gathered


def pod_options(name: str, words: PodWords, limits: LimitWords) -> RunOptions:
    """What a pod is to be. Raises InvalidArgument."""
    from orlop.cli import units
    from orlop.client import options, rights
    from orlop.client.launch import RunOptions
    from orlop.client.texts import parse_size

    return RunOptions(
        image="",
        name=name,
        ports=tuple(options.parse_port(text) for text in words.publish or ()),
        handler=words.handler,
        hostname=words.hostname,
        dns=options.name_servers(words.dns or (), words.dns_search or (), words.dns_option or ()),
        host_network=words.network is NetworkChoice.host,
        sysctls=rights.sysctls(words.sysctl or ()),
        memory=parse_size(limits.memory) if limits.memory else 0,
        cpus=limits.cpus,
        labels=units.labels(limits.label or ()),
    )


def container_options(words: ContainerWords, *, tty: bool) -> dict[str, Any]:
    """What a container is to be, by the fields of RunOptions. Raises InvalidArgument."""
    from orlop.cli import units
    from orlop.client import mounts, options, rights

    return {
        "environment": units.environment(words.env or (), words.env_file or (), tty=tty),
        "volumes": (
            *(mounts.parse_volume(text) for text in words.volume or ()),
            *(mounts.parse_tmpfs(text) for text in words.tmpfs or ()),
        ),
        "workdir": words.workdir,
        "user": words.user,
        "groups": tuple(words.group_add or ()),
        "entrypoint": words.entrypoint,
        "capabilities": options.capabilities(words.cap_add or (), words.cap_drop or ()),
        "privileged": words.privileged,
        **rights.security(words.security_opt or ()),
        "read_only": words.read_only,
        "devices": tuple(rights.device(text) for text in words.device or ()),
        "ulimits": tuple(rights.ulimit(text) for text in words.ulimit or ()),
        "pids": words.pids_limit,
        "cpu_shares": words.cpu_shares,
        "stop_signal": rights.signal_number(words.stop_signal),
        "stop_timeout": None if words.stop_timeout < 0 else words.stop_timeout,
        "hosts": options.hosts(words.add_host or ()),
        "health": _health(words),
    }


def _health(words: ContainerWords) -> str:
    from orlop.client import health

    if words.no_healthcheck:
        if words.health_cmd:
            raise InvalidArgument("--no-healthcheck and --health-cmd: give one of them")
        return ""
    return health.wish(
        words.health_cmd,
        interval=words.health_interval,
        timeout=words.health_timeout,
        start_period=words.health_start_period,
        retries=words.health_retries,
    )
