"""``orlop tenants``: the customers of a cluster, see docs/tenants.md."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from orlop.cli.parameters import Format, FormatChoice


class SortBy(StrEnum):
    """What `top --sort` takes."""

    name = "name"
    cpu = "cpu"
    memory = "memory"
    received = "received"
    sent = "sent"
    dropped = "dropped"


app = typer.Typer(
    rich_markup_mode=None,
    help="Customers of a Kubernetes cluster who do not trust one another.",
    no_args_is_help=True,
)

Kubeconfig = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time
    typer.Option("--kubeconfig", help="How to reach the cluster; else $KUBECONFIG.", show_default=False),
]
Context = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--context", help="One of its contexts.", show_default=False),
]
TenantName = Annotated[str, typer.Argument(help="The tenant.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="As the API has it.")]
Handlers = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--handler", help="A further handler of RuntimeClasses that gives a pod a VM.", show_default=False
    ),
]

Metrics = Annotated[
    str,
    typer.Option(
        "--metrics", help="Where to serve metrics for Prometheus: ADDRESS:PORT.", show_default=False
    ),
]


@app.command()
def install(
    image: Annotated[
        str, typer.Option("--image", help="The image of operator and agents, with `orlop` in it.")
    ] = "orlop-tenants:latest",
    handler: Handlers = None,
    closed: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--closed",
            help="A range of the cluster's pods or Services, for the agents; without, there are no agents.",
            show_default=False,
        ),
    ] = None,
    *,
    dns: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--dns",
            help="The address of the cluster's DNS, at which agents are to answer tenants' pods.",
            show_default=False,
        ),
    ] = None,
    domain: Annotated[
        str, typer.Option("--domain", help="The cluster's domain, if not cluster.local.", show_default=False)
    ] = "",
    defaults: Annotated[
        bool,
        typer.Option(
            "--defaults/--no-defaults",
            help="Fill in the RuntimeClass of pods that name none; needs Kubernetes 1.36.",
        ),
    ] = True,
    metrics: Annotated[
        int,
        typer.Option(
            "--metrics",
            help="A port on which operators and agents serve metrics, to all who reach them; 0 for none.",
            min=0,
            max=65535,
        ),
    ] = 0,
) -> None:
    """Print what a cluster needs to have tenants: `orlop tenants install | kubectl apply -f -`."""
    from orlop.tenants.manifests import manifests

    text = manifests(
        image,
        handlers=tuple(handler or ()),
        closed=tuple(closed or ()),
        dns=tuple(dns or ()),
        domain=domain,
        defaults=defaults,
        metrics=metrics,
    )
    print(text, end="")


@app.command()
def operator(
    handler: Handlers = None, metrics: Metrics = "", kubeconfig: Kubeconfig = None, context: Context = None
) -> None:
    """Be the operator, until ended; of several one works. The Deployment of `install` runs this."""
    from orlop.cli import tenants

    tenants.operator_command(kubeconfig, context, tuple(handler or ()), metrics=metrics)


@app.command()
def agent(
    node: Annotated[str, typer.Option("--node", help="The node's name in the cluster.", show_default=False)],
    closed: Annotated[
        list[str],
        typer.Option(
            "--closed",
            help="A range of the cluster's pods or Services, which no tenant reaches. Name all of them.",
            show_default=False,
        ),
    ],
    *,
    programs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--programs",
            help="Where CNI plug-ins are, to write orlop-tenant there for runtimes other than Orlop.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="The UDP port of VXLAN, of all nodes.", min=1)] = 14789,
    root: Annotated[
        Path,
        typer.Option(
            "--root",
            help="Where the node's own root directory is; /proc/1/root in a pod that sees its processes.",
        ),
    ] = Path("/"),
    metrics: Metrics = "",
    dns: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--dns",
            help="The address of the cluster's DNS, as kubelets tell it to pods: the agent answers there.",
            show_default=False,
        ),
    ] = None,
    domain: Annotated[str, typer.Option("--domain", help="The cluster's domain.")] = "cluster.local",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Be this node's agent, until ended: tenants' networks, and the CNI plug-in orlop-tenant (root)."""
    from orlop.cli import tenants

    places = tenants.AgentPlacing(programs, root, metrics)
    cluster = tenants.AgentCluster(tuple(closed), port, tuple(dns or ()), domain)
    tenants.agent_command(kubeconfig, context, node, cluster, places)


@app.command()
def ls(as_json: Json = False, kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """List tenants."""
    from orlop.cli import session, tenants

    session.run_async(lambda: tenants.list_command(kubeconfig, context, as_json=as_json))


@app.command()
def show(
    tenant: TenantName, as_json: Json = False, kubeconfig: Kubeconfig = None, context: Context = None
) -> None:
    """A tenant: what it has, what it takes of it, and what is amiss."""
    from orlop.cli import session, tenants

    session.run_async(lambda: tenants.show_command(kubeconfig, context, tenant, as_json=as_json))


@app.command()
def top(
    tenant: Annotated[
        str, typer.Argument(help="One tenant, with its pods; else all tenants.", show_default=False)
    ] = "",
    sort: Annotated[SortBy, typer.Option("--sort", help="What comes first.")] = SortBy.name,
    agents: Annotated[
        int,
        typer.Option(
            "--agents",
            help="The port of the agents' metrics on their nodes' addresses, for traffic and drops.",
            min=0,
            max=65535,
        ),
    ] = 0,
    *,
    format: Format = FormatChoice.text,  # noqa: A002 - the option's name
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """What tenants use: of their quota, of processors and memory now; traffic and drops, if agents tell."""
    from orlop.cli import session, tenant_top

    as_json = format is FormatChoice.json
    session.run_async(
        lambda: tenant_top.command(kubeconfig, context, tenant, by=sort, port=agents, as_json=as_json)
    )


@app.command()
def trace(
    pod: Annotated[str, typer.Argument(help="From this pod: NAMESPACE/POD.", show_default=False)],
    destination: Annotated[
        str,
        typer.Argument(
            help="To there: NAMESPACE/POD, svc/NAMESPACE/NAME, node/NAME, an address or a name.",
            show_default=False,
        ),
    ],
    port: Annotated[
        str, typer.Argument(help="The port, PORT or PORT/udp; without one a ping, if it is no Service.")
    ] = "",
    *,
    closed: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--closed",
            help="What the agents were told with --closed, if no DaemonSet of them says it.",
            show_default=False,
        ),
    ] = None,
    format: Format = FormatChoice.text,  # noqa: A002 - the option's name
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Say whether a pod reaches something, what a packet meets, and what stops it.

    It is computed from what the API server says, without the nodes. Exit code: 0 reachable, 1 not reachable,
    2 when that cannot be said.
    """
    from orlop.cli import session, tenant_trace

    as_json = format is FormatChoice.json
    question = tenant_trace.TraceQuestion(pod, destination, port, tuple(closed or ()))
    raise typer.Exit(
        session.run_async(
            lambda: tenant_trace.command(kubeconfig, context, question, as_json=as_json),
            code=lambda error: 2,
        )
    )


@app.command("kubeconfig")
def kubeconfig_(
    tenant: TenantName,
    user: Annotated[str, typer.Argument(help="One of its members.", show_default=False)],
    hours: Annotated[int, typer.Option("--hours", help="How long it is good for.", min=1, max=8760)] = 24,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Print a kubeconfig for a member. It is good for a while, and no longer than its user is a member."""
    from orlop.cli import session, tenants

    session.run_async(lambda: tenants.kubeconfig_command(kubeconfig, context, tenant, user, hours=hours))
