"""`orlop run` beside `podman run`: what people tell the one, told the other, with the same outcome.

Options that do not disturb each other share a container, for the sake of the time it takes.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commandline import Inside, until
from tests.doors.podman import Podman, podman
from tests.node import BUSYBOX, Done, Node


class Row(NamedTuple):
    """Options, and what a container sees of them."""

    options: tuple[str, ...]
    seen: str = "true"


PLAIN = (
    Row(("--env", "A=b", "-e", "FROM_HERE"), "echo $A $FROM_HERE"),
    Row(("--env-file", "FILES/variables"), "echo $IN_FILE"),
    Row(("--workdir", "/tmp"), "pwd"),
    Row(("--hostname", "inside"), "hostname"),
    Row(("--add-host", "other:192.0.2.7"), "grep other /etc/hosts | tr '\\t' ' '"),
    Row(
        ("--dns", "192.0.2.53", "--dns-search", "example.org", "--dns-option", "ndots:3"),
        "grep -v '^#' /etc/resolv.conf | sort",
    ),
    Row(("--ulimit", "nofile=500:600"), "ulimit -n; ulimit -Hn"),
    Row(("--tmpfs", "/memory:size=1m,mode=1770"), "df /memory | tail -1 | cut -c1-30; stat -c %a /memory"),
    Row(("--mount", "type=tmpfs,target=/more,tmpfs-size=2m"), "df /more | tail -1 | cut -c1-30"),
    Row(("--volume", "FILES:/files:ro"), "cat /files/variables; touch /files/x 2>&1 | sed 's/.*: //'"),
    Row(("--mount", "type=bind,source=FILES,target=/bound,ro"), "ls /bound"),
    Row(("--memory", "128m"), "cat /sys/fs/cgroup/memory.max"),
    Row(("--cpus", "1.5"), "cat /sys/fs/cgroup/cpu.max"),
    Row(("--pids-limit", "77"), "cat /sys/fs/cgroup/pids.max"),
    Row(("--sysctl", "net.ipv4.ip_default_ttl=33"), "cat /proc/sys/net/ipv4/ip_default_ttl"),
    Row(("--label", "a=b"), "echo to stderr >&2"),
)
CONFINED = (
    Row(("--user", "33:44", "--group-add", "77"), "id -u; id -g; id -G"),
    Row(("--read-only",), "touch /new 2>&1 | sed 's/.*: //'"),
    Row(("--cap-drop", "ALL"), "grep Cap /proc/self/status"),
    Row(("--security-opt", "no-new-privileges"), "grep NoNewPrivs /proc/self/status"),
)
RIGHTS = (
    Row(
        ("--cap-drop", "ALL", "--cap-add", "CHOWN", "--cap-add", "CAP_KILL"), "grep CapEff /proc/self/status"
    ),
    Row(("--pull", "missing"), "exit 42"),
)

Run = Callable[..., Done]


@pytest.fixture(scope="module")
def both(shared_node: Node) -> Iterator[tuple[Run, Run]]:
    """`podman` and `orlop`, whose containers are VMs of one daemon."""
    with tempfile.TemporaryDirectory(prefix="orlop-podman-") as name, podman(Path(name), shared_node) as one:
        one("pull", "-q", "--tls-verify=false", BUSYBOX)
        cli = Inside(shared_node)
        cli("pull", "-q", BUSYBOX)
        yield one, cli
        assert isinstance(one, Podman)
        until(lambda: one.containers() == [], "the runtime still knows a container")
        assert cli("ps", "-aq").out == ""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for path in (tmp_path, tmp_path.parent):
        path.chmod(0o755)
    (tmp_path / "variables").write_text("# a comment\nIN_FILE=two words\n")
    return tmp_path


@pytest.mark.parametrize("rows", [PLAIN, CONFINED, RIGHTS], ids=["plain", "confined", "rights"])
def test_options_do_what_they_do_elsewhere(
    both: tuple[Run, Run], files: Path, monkeypatch: pytest.MonkeyPatch, rows: Sequence[Row]
) -> None:
    told = [word.replace("FILES", str(files)) for row in rows for word in row.options]
    script = "; ".join(f"echo '== {' '.join(row.options)}'; {row.seen}" for row in rows)
    done = []
    for run in both:
        monkeypatch.setitem(run.env, "FROM_HERE", "here")  # type: ignore[attr-defined]
        done.append(run("run", "--rm", *told, BUSYBOX, "sh", "-c", script, check=False))
    theirs, ours = done
    assert ours.out.split("== ") == theirs.out.split("== "), (ours.err, theirs.err)
    assert (ours.code, ours.err) == (theirs.code, theirs.err)


@pytest.mark.parametrize(
    ("args", "stdin"),
    [
        (("-i", BUSYBOX, "sort"), b"b\na\n"),
        (("--entrypoint", "echo", BUSYBOX, "an", "argument"), b""),
        ((BUSYBOX, "no-such-program"), b""),
        ((BUSYBOX, "/etc"), b""),
        (("--pull", "never", "registry.k8s.io/orlop-test/absent:1", "true"), b""),
        (("--name", "UPPER and spaces", BUSYBOX, "true"), b""),
        ((BUSYBOX, "sh", "-c", "echo out; exit 42"), b""),
    ],
    ids=["stdin", "entrypoint", "no program", "no file to run", "no image", "no name", "exit code"],
)
def test_the_end_is_told_as_elsewhere(both: tuple[Run, Run], args: tuple[str, ...], stdin: bytes) -> None:
    theirs, ours = (run("run", "--rm", *args, stdin=stdin, check=False) for run in both)
    assert (ours.code, ours.out) == (theirs.code, theirs.out), (ours.err, theirs.err)
    assert bool(ours.err) == bool(theirs.err)


def test_one_in_the_background(both: tuple[Run, Run]) -> None:
    script = "trap 'echo told; exit 5' USR1; echo up; while :; do sleep 0.05; done"
    seen = []
    for run in both:
        options = ("--name", "back", "--stop-signal", "USR1", "--stop-timeout", "60")
        run("run", "-d", *options, BUSYBOX, "sh", "-c", script)
        until(lambda run=run: "up" in run("logs", "back").out, "it does not run")
        state = run("ps", "--filter", "name=back", "--filter", "status=running", "--format", "{{.Names}}").out
        run("stop", "back")
        code = run("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "back").out
        seen.append((state, code, run("logs", "--tail", "1", "back").out))
        run("rm", "back")
    assert seen[0] == seen[1] == ("back\n", "exited 5\n", "told\n")


def _listed(path: Path) -> dict[str, tuple[object, ...]]:
    """What is in an archive, but for the places where each runtime mounts its own."""
    own = ("etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab")
    with tarfile.open(path) as archive:
        return {
            one.name: (one.type, one.mode & 0o7777, one.uid, one.gid, one.size, one.linkname)
            for one in archive
            if one.name.split("/")[0] not in ("dev", "proc", "sys", "run", "volume") and one.name not in own
        }


def test_an_export_is_the_one_of_elsewhere(both: tuple[Run, Run], tmp_path: Path) -> None:
    """But for the places where each mounts its own."""
    script = (
        "mkdir -p /made/deep; echo words > /made/deep/file; ln /made/deep/file /made/second; rm /bin/true; "
        "chown 1000:33 /made/deep/file; chmod 4750 /made/deep/file; ln -s ../etc /made/link; "
        "echo up; exec sleep 100000"
    )
    listed = []
    for number, run in enumerate(both):
        run("run", "-d", "--name", "packed", BUSYBOX, "sh", "-c", script)
        until(lambda run=run: "up" in run("logs", "packed").out, "it does not run")
        run("export", "-o", str(tmp_path / f"{number}.tar"), "packed")
        run("rm", "-f", "-t", "0", "packed") if number == 0 else run("rm", "-f", "packed")
        listed.append(_listed(tmp_path / f"{number}.tar"))
    assert listed[0] == listed[1]
    assert "made/deep/file" in listed[1] and "bin/true" not in listed[1]


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_a_container_becomes_an_image_that_others_run(
    both: tuple[Run, Run], tmp_path: Path, handler: str
) -> None:
    """The files of a container of podman, made of it, are those of ours: owners, links, what is not there."""
    theirs, ours = both
    script = (
        "mkdir -p /made/deep; echo words > /made/deep/file; ln /made/deep/file /made/second; rm /bin/true; "
        "chown 1000:33 /made/deep/file; chmod 4750 /made/deep/file; ln -s ../etc /made/link; "
        "rm -r /var; mkdir /var; touch /var/only; mkfifo /made/pipe; echo up; exec sleep 100000"
    )
    options = ("--handler", handler, "--tmpfs", "/volume", "--name", "source", "-e", "A=b", "-w", "/tmp")
    ours("run", "-d", *options, BUSYBOX, "sh", "-c", script)
    until(lambda: "up" in ours("logs", "source").out, "it does not run")
    ours("commit", "-c", 'CMD ["pwd"]', "-a", "somebody", "-m", "why", "source", "localhost/of-a-container:1")
    ours("export", "-o", str(tmp_path / "ours.tar"), "source")
    ours("rm", "-f", "source")
    ours("save", "-q", "-o", str(tmp_path / "image.tar"), "localhost/of-a-container:1")
    ours("rmi", "localhost/of-a-container:1")
    theirs("load", "-q", "-i", str(tmp_path / "image.tar"))
    image = "localhost/of-a-container:1"
    assert theirs("run", "--rm", image).out == "/tmp\n"
    assert theirs("run", "--rm", image, "sh", "-c", "echo $A; ls /var; stat -c %h /made/second").out == (
        "b\nonly\n2\n"
    )
    assert theirs("inspect", "--type", "image", "--format", "{{.Author}}", image).out == "somebody\n"
    assert theirs("history", "--format", "{{.Comment}}", image).out.splitlines()[0] == "why"
    theirs("create", "--name", "copy", image)
    theirs("export", "-o", str(tmp_path / "theirs.tar"), "copy")
    theirs("rm", "copy")
    theirs("rmi", image)
    assert _listed(tmp_path / "theirs.tar") == _listed(tmp_path / "ours.tar")
