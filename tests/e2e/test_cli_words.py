"""Words of podman and docker that need the daemon's help, each against a real one: health, names, changes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import orlop.blocking
from tests.commandline import Cli, Inside, until
from tests.node import BUSYBOX, Node

FOREVER = ("sleep", "100000")


@pytest.fixture(scope="module")
def cli(shared_node: Node) -> Iterator[Cli]:
    yield Inside(shared_node)
    shared_node.remove_all()


def test_health_is_looked_at_by_the_daemon_over_its_restart(cli: Cli) -> None:
    check = ("--health-cmd", "test -e /well || { echo no file; false; }", "--health-interval", "1s")
    cli("run", "-d", "--name", "patient", *check, "--health-retries", "1", BUSYBOX, *FOREVER, timeout=200)
    assert cli("wait", "--condition", "unhealthy", "patient").out == "-1\n"
    row = ("--filter", "name=^patient$", "--format", "{{.Status}} {{.Health}}")
    assert cli("ps", *row).out == "running (unhealthy) unhealthy\n"
    done = cli("healthcheck", "run", "patient", check=False)
    assert (done.code, done.out) == (1, "unhealthy\n")
    cli("exec", "patient", "touch", "/well")
    cli("wait", "--condition", "healthy", "patient")
    assert cli("ps", "--filter", "health=healthy", *row).out == "running (healthy) healthy\n"
    assert cli("healthcheck", "run", "patient").out == ""
    (known,) = json.loads(cli("inspect", "--format", "json", "patient").out)
    assert known["Config"]["Healthcheck"]["Test"][0] == "CMD-SHELL"
    assert known["State"]["Health"]["Log"][-1]["ExitCode"] == 0
    told = [json.loads(line) for line in cli("events", "--format", "json").out.splitlines()]
    ours = [one for one in told if one["id"] == known["Id"] and one["event"] == "health_status"]
    assert [one["health"] for one in ours] == ["healthy"]
    cli.node.kill()
    cli.node.start()
    cli.node.wait_ready()
    assert cli("ps", *row).out == "running (healthy) healthy\n", "it is known before anybody has asked again"
    cli("exec", "patient", "rm", "/well")
    cli("wait", "--condition", "unhealthy", "patient")
    log = json.loads(cli("inspect", "--format", "{{json .State.Health.Log}}", "patient").out)
    assert log[-1]["Output"] == "no file\n" and log[-1]["ExitCode"] == 1
    cli("rm", "-f", "patient")


def test_an_image_says_how_its_health_is_told(cli: Cli) -> None:
    with orlop.blocking.connect(cli.node.socket) as node, node.pod(handler="process") as pod:
        own = {"Test": ["CMD", "cat", "/proc/self/limits"], "Interval": 3600_000_000_000}
        maker = pod.start(BUSYBOX, *FOREVER)
        packed = maker.exec("tar", "-c", "-f", "-", "-C", "/", "bin").check().stdout
        file = cli.node.scratch / "checked.tar"
        file.write_bytes(packed)
        node.import_image(file, name="localhost/checked", settings={"Healthcheck": own})
        checked = pod.start("localhost/checked", *FOREVER)
        plain = pod.start("localhost/checked", *FOREVER, health_cmd="none")
        until(lambda: checked.facts().health == "healthy", "it is never well")
        assert b"Max open files" in checked.check_health().stdout
        assert plain.facts().health == "" and maker.facts().health == ""
        with pytest.raises(orlop.errors.FailedPrecondition, match="no health check"):
            plain.check_health()
        by_id = {one.id: one.health for one in node.containers()}
        assert (by_id[checked.id], by_id[plain.id]) == ("healthy", "")
    kept = cli(
        "inspect", "--type", "image", "--format", "{{json .Config.Healthcheck.Test}}", "localhost/checked"
    )
    assert json.loads(kept.out) == own["Test"]
    without = cli("healthcheck", "run", "nobody", check=False)
    assert without.code == 125 and "orlop ps -a" in without.err
    cli("rmi", "localhost/checked")
    file.unlink()
