"""Words of podman and docker that need the daemon's help, each against a real one: health, names, changes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

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
    check = (
        "--health-cmd",
        "test -e /well || { echo no file; false; }",
        "--health-interval",
        "1s",
        "--health-timeout",
        "10m",
    )
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
    wanted = ("--filter", "container=patient", "--filter", "event=health_status")
    assert cli("events", *wanted, "--format", "{{.Type}} {{.HealthStatus}}").out == "container healthy\n"
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
        assert b"Max realtime timeout" in checked.check_health().stdout
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


def test_a_container_gets_another_name(cli: Cli) -> None:
    here = ("--handler", "process")
    cli("run", "-d", "--name", "plain", *here, BUSYBOX, "sh", "-c", "echo from the first; exec sleep 100000")
    until(lambda: cli("logs", "plain").out == "from the first\n", "it says nothing")
    one = cli("ps", "--no-trunc", "-q", "--filter", "name=^plain$").out.strip()
    taken = cli("run", "-d", "--name", "plain", *here, BUSYBOX, *FOREVER, check=False)
    assert taken.code == 125 and "taken" in taken.err and taken.err.count("\n") == 1
    assert cli("rename", "plain", "fancy").out == ""
    row = ("--filter", f"id={one}", "--format", "{{.Names}} {{.PodName}}")
    assert cli("ps", *row).out == "fancy orlop/fancy\n"
    assert cli("inspect", "--format", "{{.Name}} {{.PodName}} {{.Id}}", "fancy").out == f"fancy fancy {one}\n"
    gone = cli("inspect", "plain", check=False)
    assert gone.code == 1 and "plain" in gone.err
    assert cli("logs", "fancy").out == "from the first\n" and "fancy" in cli("events").out
    # The old name is free; and of two who want one name one gets it.
    cli("run", "-d", "--name", "plain", *here, BUSYBOX, *FOREVER)
    both = [cli.start("rename", name, "wanted") for name in ("plain", "fancy")]
    said = [child.communicate() for child in both]
    assert sorted(child.returncode for child in both) == [0, 1], said
    assert sum(err.count(b"\n") for _, err in said) == 1 and b"taken" in said[0][1] + said[1][1]
    winner, loser = ("plain", "fancy") if both[0].returncode == 0 else ("fancy", "plain")
    assert cli("container", "exists", winner, check=False).code == 1
    # A name lasts over a restart of its container, in the pod that is there and in another one.
    for _ in range(2):
        again = cli("restart", "-t", "0", "wanted").out.strip()
        assert cli("inspect", "--format", "{{.Id}} {{.PodName}}", "wanted").out == f"{again} wanted\n"
        cli("stop", "-t", "0", "wanted")
    cli("rm", "-f", "wanted", loser)
    assert not [
        path for path in (cli.node.scratch / "cli-logs").glob("*") if path.name[:6] in ("plain_", "fancy_")
    ]


def test_a_container_among_others_gets_another_name(cli: Cli) -> None:
    cli("pod", "create", "shop-of-names", "--handler", "process")
    for name in ("till", "shelf"):
        cli("run", "-d", "--pod", "shop-of-names", "--name", name, BUSYBOX, *FOREVER)
    cli("rename", "till", "counter")
    names = cli("ps", "--filter", "pod=shop-of-names", "--sort", "names", "--format", "{{.Names}}").out
    assert names.split() == ["counter", "shelf"]
    refused = cli("rename", "shelf", "counter", check=False)
    assert refused.code == 1 and "taken by container" in refused.err
    assert "is no name" in cli("rename", "shelf", "a/b", check=False).err
    again = cli("restart", "-t", "0", "counter").out.strip()
    assert cli("inspect", "--format", "{{.Id}}", "counter").out.strip() == again
    with orlop.blocking.connect(cli.node.socket) as node:
        node.container("counter").rename("till")
        assert node.container("till").facts().name == "till"
    cli("pod", "rm", "-f", "shop-of-names")


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_what_a_container_has_changed_in_its_image_and_its_files(
    cli: Cli, tmp_path: Path, handler: str
) -> None:
    name = f"writer-{handler}"
    script = (
        "mkdir -p /made/deep && echo x > /made/deep/file && rm /bin/busybox.none 2>/dev/null;"
        " echo more >> /etc/passwd; rm /bin/true; touch /volume/seen; echo done; exec sleep 100000"
    )
    options = ("--name", name, "--handler", handler, "--tmpfs", "/volume")
    cli("run", "-d", *options, BUSYBOX, "sh", "-c", script, timeout=200)
    until(lambda: "done" in cli("logs", name).out, "it writes nothing")
    lines = cli("diff", name).out.splitlines()
    assert {"A /made", "A /made/deep", "A /made/deep/file", "C /etc", "C /etc/passwd", "D /bin/true"} <= {
        *lines
    }
    assert not [line for line in lines if line.split()[1].startswith(("/proc", "/dev", "/sys", "/volume"))]
    assert lines.index("A /made") < lines.index("A /made/deep/file")
    told = json.loads(cli("diff", "--format", "json", name).out)
    assert "/made/deep/file" in told["added"] and "/etc/passwd" in told["changed"]
    assert told["deleted"] == ["/bin/true"]
    with orlop.blocking.connect(cli.node.socket) as node:
        found = {one.path: one.kind for one in node.container(name).changes()}
    assert found["/bin/true"] == "D" and found["/made"] == "A"
    archive = tmp_path / "files.tar"
    cli("export", "-q", "-o", str(archive), name)
    with tarfile.open(archive) as files:
        assert files.extractfile("made/deep/file").read() == b"x\n"  # type: ignore[union-attr]
        inside = set(files.getnames())
    assert {"bin/busybox", "etc/passwd"} <= inside and not inside & {"bin/true", "volume/seen", "proc/self"}
    with orlop.blocking.connect(cli.node.socket) as node:
        assert b"".join(node.container(name).exported()) == archive.read_bytes()
    assert cli("export", name).raw == archive.read_bytes()
    committed = (
        "-c",
        'CMD ["cat", "/made/deep/file"]',
        "-c",
        "ENV A=b",
        "-a",
        "somebody",
        "-m",
        "for a test",
    )
    image = cli("commit", *committed, name, f"localhost/{name}:1").out.strip()
    seen = "cat /made/deep/file; echo $A; tail -1 /etc/passwd; ls /bin/true /volume/seen; exit 3"
    again = cli("run", "--rm", "--handler", handler, image, "sh", "-c", seen, check=False)
    assert (again.out, again.code) == ("x\nb\nmore\n", 3), again
    assert cli("run", "--rm", "--handler", handler, f"localhost/{name}:1").out == "x\n"
    cli("rmi", image)
    refused = cli("commit", "-c", "NONSENSE x", name, check=False)
    assert refused.code == 1 and "--change takes" in refused.err
    cli("stop", "-t", "0", name)
    for command in ("diff", "export", "commit"):
        ended = cli(command, name, check=False)
        assert ended.code == 1 and "does not run" in ended.err and ended.err.count("\n") == 1
    cli("rm", name)


def test_all_that_is_ours_and_nothing_of_a_kubelet(cli: Cli) -> None:
    pod, kubelets = cli.node.run(BUSYBOX, *FOREVER, handler="process")
    ours = {
        cli("run", "-d", "--name", name, "--handler", "process", BUSYBOX, *FOREVER).out.strip()
        for name in ("all-1", "all-2")
    }
    cli("pause", "all-1")
    assert ours - {*cli("pause", "-a").out.split()} and not {kubelets} & {
        *cli("unpause", "--all").out.split()
    }
    assert cli("inspect", "-f", "{{.State.Status}}", "all-1", "all-2").out == "running\nrunning\n"
    assert ours <= {*cli("stop", "-a", "-t", "0").out.split()}
    assert ours <= {*cli("rm", "--all").out.split()}
    assert cli.node.status(kubelets)["state"] == "CONTAINER_RUNNING"
    assert cli("rm", "--ignore", "all-1").out == "" and cli("pod", "exists", "all-1", check=False).code == 1
    for wrong in (("stop",), ("stop", "-a", "x")):
        assert cli(*wrong, check=False).code == 2
    cli.node.remove_pod(pod)


def test_who_reads_changes_slowly_keeps_nobody_from_removing_the_container(cli: Cli) -> None:
    # More than what is under way between the daemon and who reads.
    make = "mkdir /many; cd /many; i=0; while [ $i -lt 6000 ]; do : > $p$i; i=$((i+1)); done; cd /"
    again = f"p=$(printf %0200d 7); {make}; echo done; exec sleep 100000"
    cli("run", "-d", "--name", "slowly", "--handler", "process", BUSYBOX, "sh", "-c", again)
    until(lambda: "done" in cli("logs", "slowly").out, "it writes nothing")
    with orlop.blocking.connect(cli.node.socket) as node:
        container = node.container("slowly")
        assert len([one for one in container.changes() if one.path.startswith("/many/")]) == 6000
        told = iter(container.changes())
        first = next(told)
        cli("rm", "-f", "slowly")
        # All of it, or that it is gone: whatever comes, an end comes.
        with contextlib.suppress(orlop.errors.OrlopError):
            assert first.path not in [one.path for one in told]
    until(lambda: container.id not in Path("/proc/self/mountinfo").read_text(), "it is still mounted")


def test_a_shell_completes_what_there_is(cli: Cli) -> None:
    cli("pod", "create", "completed-pod", "--handler", "process")
    cli("run", "-d", "--pod", "completed-pod", "--name", "completed", BUSYBOX, *FOREVER)

    def offered(*words: str) -> list[str]:
        asked = {"_ORLOP_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
        asked["COMP_CWORD"] = str(len(words) - 1)
        argv = [sys.executable, "-m", "orlop.cli.main"]
        done = subprocess.run(argv, env={**cli.env, **asked}, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert offered("orlop", "stop", "complet") == ["completed"]
    assert offered("orlop", "pod", "rm", "complet") == ["completed-pod"]
    assert BUSYBOX in offered("orlop", "rmi", BUSYBOX[:5]) and "healthcheck" in offered("orlop", "health")
    cli("pod", "rm", "-f", "completed-pod")
