"""What the command ``orlop`` lists and how, against a real daemon with pods of both handlers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from orlop import __version__
from tests.commandline import Cli, Inside, until
from tests.node import BUSYBOX, Node

LOOP = "trap 'exit 4' TERM; echo first; echo second; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def cli(shared_node: Node) -> Iterator[Cli]:
    """A VM ``one`` that runs, and a process pod ``two`` that has ended."""
    shared_node.remove_all()
    cli = Inside(shared_node)
    label = ("--label", "who=me", "--label", "stays")
    cli("run", "-d", "--name", "one", *label, BUSYBOX, "sh", "-c", LOOP, timeout=200)
    cli("run", "--name", "two", "--handler", "process", "-l", "who=you", BUSYBOX, "false", check=False)
    yield cli
    shared_node.remove_all()


def names(cli: Cli, *args: str) -> list[str]:
    return cli("ps", "--format", "{{.Names}}", *args).out.split()


def test_containers_by_template_filter_and_order(cli: Cli) -> None:
    assert names(cli) == ["one"] and names(cli, "-a") == ["two", "one"]
    assert names(cli, "-a", "--sort", "names") == ["one", "two"]
    assert names(cli, "--latest") == names(cli, "-n", "1") == ["two"]
    for wanted, found in (
        (("status=exited", "exited=1", "label=who=you", "name=^tw", "since=one"), ["two"]),
        (("ancestor=busybox", "before=two", "label=stays"), ["one"]),
        (("status=running", "exited=0", "name=^o"), []),
    ):
        assert names(cli, "-a", *(f"--filter={text}" for text in wanted)) == found, wanted
    assert names(cli, "-a", "--filter", "label=who", "--filter", "pod=two") == ["two"]
    (one,) = json.loads(cli("ps", "--format", "json").out)
    assert one["Command"] == ["sh", "-c", LOOP] and one["Labels"]["who"] == "me" and one["Handler"] == "vm"
    assert one["State"] == "running" and one["ExitCode"] is None and abs(one["Created"] - time.time()) < 3600
    line = cli("ps", "-a", "--format", r"{{.ID}}\t{{.State}}\t{{.ExitCode}}\t{{.Handler}}").out.splitlines()
    assert line[0].split("\t")[1:] == ["exited", "1", "process"] and len(line[1].split("\t")[0]) == 13
    assert cli("ps", "--no-trunc", "--format", "{{.ID}}").out.strip() == cli("ps", "-q").out.strip()
    table = cli("ps", "--format", r"table {{.Names}}\t{{.Status}}").out.splitlines()
    assert [row.split() for row in table] == [["NAME", "STATE"], ["one", "running"]]
    cli("pause", "one")
    assert names(cli, "--filter", "status=paused") == ["one"] and "paused" in cli("ps").out
    cli("unpause", "one")


def test_one_thing_in_podmans_words(cli: Cli) -> None:
    template = "{{.State.Status}} {{.State.ExitCode}} {{.Config.Labels.who}} {{.Handler}} {{.Name}}"
    said = cli("inspect", "--format", template, "one", "two").out.splitlines()
    assert said == ["running 0 me vm one", "exited 1 you process two"]
    one, two = json.loads(cli("inspect", "--format", "json", "one", "two").out)
    assert one["Args"] == ["-c", LOOP] and one["NetworkSettings"]["IPAddress"]
    assert two["State"]["FinishedAt"] >= two["State"]["StartedAt"] and two["Path"] == "false"
    image = cli("inspect", "--type", "image", "--format", "{{.RepoTags}} {{.Os}}", BUSYBOX).out
    assert BUSYBOX in image.split() and image.endswith(" linux\n")
    assert cli("inspect", "--type", "pod", "--format", "{{.Name}} {{.State}}", "two").out == "two ended\n"
    wrong = cli("inspect", "--format", "{{.State.Mood}}", "one", check=False)
    assert wrong.code == 2 and "State.Status" in wrong.err and wrong.err.count("\n") == 1
    assert "no image" in cli("inspect", "--type", "image", "one", check=False).err


def test_other_lists(cli: Cli) -> None:
    row = cli("images", "--filter", "reference=busybox*", "--format", "{{.Repository}}:{{.Tag}}").out
    assert BUSYBOX in row.split()
    assert cli("images", "-q", "is-not-here").out == ""
    fields = "{{.Name}} {{.Status}} {{.Handler}} {{.NumberOfContainers}}"
    pods = cli("pod", "ls", "--format", fields).out.splitlines()
    assert pods == ["orlop/two ended process 1", "orlop/one ready vm 1"]
    (used,) = json.loads(cli("stats", "--interval", "0.2", "--format", "json", "one").out)
    assert used["Name"] == "one" and used["MemUsage"] > 0
    cli("volume", "create", "shelf", "--size", "16m")
    assert "shelf 16.0 MiB\n" in cli("volume", "ls", "--format", "{{.Name}} {{.Size}}").out
    cli("volume", "rm", "shelf")
    assert cli("system", "df", "--format", "{{.Type}} {{.Total}} {{.Active}}").out.splitlines()[1] == (
        "containers 2 1"
    )
    template = "{{.Containers.Running}} {{.Pods.Total}} {{.Conditions.RuntimeReady}}"
    assert (
        cli("info", "--format", template).out
        == cli("system", "info", "--format", template).out
        == "1 2 true\n"
    )
    assert cli("version", "--format", "{{.Client.Version}} {{.Server.Name}}").out == f"{__version__} orlop\n"


def test_logs_of_a_time_and_the_processes_of_a_container(cli: Cli) -> None:
    until(lambda: "second" in cli("logs", "one").out, "it does not run")
    assert cli("logs", "--since", "1h", "--tail", "1", "one").out == "second\n"
    assert cli("logs", "--until", "2020-01-01", "one").out == ""
    stamped = [line.split() for line in cli("logs", "-t", "one").out.splitlines()]
    when = stamped[1][0]
    # What is read at once has one time.
    later = [word for time, word in stamped if time[:26] >= when[:26]]
    assert cli("logs", "--since", when, "one").out.split() == later
    assert cli("logs", "-f", "--until", when, "one").out == "first\nsecond\n", "it ends, though one runs"
    told = json.loads(cli("top", "one", "--format", "json").out)
    # One that is just becoming another program has no words yet, and is shown by its name in brackets.
    commands = {row["COMMAND"].split()[0].strip("[]") for row in told}
    assert {"sh"} <= commands <= {"sh", "sleep"} and len(told) < 3
    assert told[0]["UID"] == "0"
    cli("run", "-d", "--name", "neighbour", "--pod", "one", BUSYBOX, "sleep", "777")
    # With its name: the number alone may be that of a process.
    assert "sleep 777" not in cli("top", "one").out and "sleep 777" in cli("top", "neighbour").out
    cli("rm", "-f", "neighbour")
    assert cli("wait", "--condition", "running", "one").out == "-1\n"
    never = cli("wait", "--condition", "running", "two", check=False)
    assert never.code == 1 and "has ended" in never.err
    assert cli("wait", "two").out == "1\n"
