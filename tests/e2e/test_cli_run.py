"""The command ``orlop`` against a real daemon: VMs, the terminal, exit codes, what it leaves."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commandline import COMMAND, Cli, until
from tests.conformance.tools import free_port
from tests.node import BUSYBOX, NGINX, Node
from tests.patience import PATIENCE


@pytest.fixture
def cli(shared_node: Node) -> Iterator[Cli]:
    """What another test leaves, of this file or before it, must not fail the next one."""
    shared_node.remove_all()
    yield Cli(shared_node)
    shared_node.remove_all()


def test_run_shows_output_and_passes_the_exit_code_on(cli: Cli) -> None:
    logs = cli.node.scratch / "cli-logs"
    cli("pull", "-q", BUSYBOX)
    # Pods of other tests that were removed by the daemon, not by the command, leave their logs here.
    before = set(logs.iterdir()) if logs.exists() else set()
    done = cli("run", "--rm", BUSYBOX, "sh", "-c", "echo out; echo err >&2; exit 42", check=False)
    assert (done.out, done.err, done.code) == ("out\n", "err\n", 42)
    assert cli("ps", "-a", "-q").out.strip() == ""
    assert set(logs.iterdir()) == before


def test_stdin_goes_through(cli: Cli) -> None:
    done = cli("run", "--rm", "-i", BUSYBOX, "sort", stdin=b"pear\napple\n")
    assert done.out == "apple\npear\n"


def test_options_reach_the_container(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    for directory in (tmp_path, tmp_path.parent):
        directory.chmod(0o755)
    options = [
        "-e",
        "A=1",
        "-v",
        f"{tmp_path}:/data:ro",
        "-w",
        "/data",
        "-u",
        "1000:1000",
        "--name",
        "thename",
    ]
    script = "hostname; pwd; id -u; id -g; echo $A; cat file"
    done = cli("run", "--rm", *options, "--memory", "256m", "--cpus", "1", BUSYBOX, "sh", "-c", script)
    assert done.out.split("\n")[:6] == ["thename", "/data", "1000", "1000", "1", "of the host"]


def test_a_pod_of_several_containers(cli: Cli) -> None:
    known_as = ("--hostname", "counter", "--dns", "192.0.2.53")
    pod = cli("pod", "create", "shop", *known_as, timeout=200).out.strip()
    try:
        serve = "hostname > index.html; httpd -f -p 8000"
        cli("run", "-d", "--pod", "shop", "--name", "server", BUSYBOX, "sh", "-c", serve)
        script = (
            "until wget -q -O - 127.0.0.1:8000; do sleep 0.1; done; grep nameserver /etc/resolv.conf; "
            "grep CapBnd /proc/self/status; echo $B; exit 3"
        )
        variables = cli.node.scratch / "variables"
        variables.write_text("B=from a file\n")
        rights = ("--cap-drop", "ALL", "--cap-add", "CHOWN")
        options = ("--name", "client", "--env-file", str(variables), *rights)
        asked = cli("run", "--rm", "--pod", "shop", *options, BUSYBOX, "sh", "-c", script, check=False)
        assert asked.code == 3
        said = ["counter", "nameserver 192.0.2.53", "CapBnd:\t0000000000000001", "from a file"]
        assert asked.out.splitlines() == said
        listed = cli("pod", "ls").out.splitlines()[-1].split()
        assert listed[0] == pod[:13] and listed[1] == "orlop/shop" and listed[-1] == "1", "--rm took its own"
        cli("run", "--pod", "shop", "--name", "done", BUSYBOX, "true")
        assert "containers" in cli("system", "prune", "--force").out, "what has ended in it goes"
        assert "running" in cli("ps").out
        refused = cli("pod", "rm", "shop", check=False)
        assert refused.code == 1 and "1 running" in refused.err and "--force" in refused.err
        told = cli("system", "info").out
        assert "RuntimeReady" in told and re.search(r"Containers +1, 1 running", told)
        assert re.search(r"containers +1 +1 ", cli("system", "df").out)
    finally:
        cli("pod", "rm", "--force", "shop")
    assert cli("pod", "ls", "-q").out == "" and cli("ps", "-a", "-q").out.strip() == ""
    cli.node.wait_no_leaks_but_warm()


def test_detached_container_from_birth_to_removal(cli: Cli) -> None:
    port = free_port()
    container = cli(
        "run", "-d", "--name", "web", "-p", f"127.0.0.1:{port}:80", NGINX, timeout=200
    ).out.strip()
    listed = cli("ps").out
    assert container[:13] in listed and "web" in listed and "vm" in listed and "running" in listed
    address = re.search(r"\d+\.\d+\.\d+\.\d+", listed)
    assert address is not None
    assert b"Welcome" in _get(address[0], 80)
    assert cli("exec", "web", "sh", "-c", "cat; exit 5", check=False).code == 5
    assert cli("exec", "-i", "web", "cat", stdin=b"hello").raw == b"hello"
    inspected = json.loads(cli("inspect", "web").out)
    assert inspected["container"]["status"]["id"] == container
    assert "MEMORY" in cli("stats", "--interval", "0.3").out
    refused = cli("rm", "web", check=False)
    assert refused.code == 1 and "--force" in refused.err
    cli("stop", "web")
    assert "exited" in cli("ps", "-a").out
    cli("rm", "web")
    assert cli("ps", "-a", "-q").out.strip() == ""
    cli.node.wait_no_leaks_but_warm()


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_detached_container_goes_when_it_has_ended(cli: Cli, handler: str) -> None:
    """Who waits hears how, a restart of the daemon changes nothing, and `rm` by hand does not fail."""
    logs = cli.node.scratch / "cli-logs"
    cli("pull", "-q", BUSYBOX)
    before = set(logs.iterdir()) if logs.exists() else set()
    waits = ("run", "-d", "-i", "--rm", "--handler", handler, "--name", "brief")
    cli(*waits, BUSYBOX, "sh", "-c", "read word; exit 6")
    refused = cli("restart", "brief", check=False)
    assert refused.code == 1 and "--rm" in refused.err
    done = cli("attach", "-i", "brief", stdin=b"now\n", check=False)
    assert done.code == 6
    until(lambda: cli("pod", "ls", "-q").out.strip() == "", "the pod does not go")
    assert set(logs.iterdir()) == before
    cli(*waits, BUSYBOX, "sleep", "3600")
    cli.node.kill()
    cli.node.start()
    cli("stop", "--time", "0", "brief")
    until(lambda: cli("pod", "ls", "-q").out.strip() == "", "the pod does not go")
    cli(*waits, BUSYBOX, "sleep", "3600")
    cli("rm", "--force", "brief")
    assert cli("ps", "-a", "-q").out.strip() == ""
    assert set(logs.iterdir()) == before
    cli.node.wait_no_leaks_but_warm()


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_a_detached_container_runs_again(cli: Cli, tmp_path: Path, handler: str) -> None:
    """The same one, by the daemon and by the next one; until somebody ends it, or it has had its turns."""
    tmp_path.chmod(0o777)
    runs, end = tmp_path / "runs", tmp_path / "end"
    runs.touch()

    def run_until(times: int) -> None:
        until(lambda: runs.read_text().count("run") >= times, f"it does not run {times} times")

    # Each file ends one run; what a run leaves in its root is not there for the next.
    script = "[ -e /mark ] || echo run >> /data/runs; touch /mark; "
    script += "until rm /data/end; do sleep 0.1; done; exit 3"
    made = ("run", "-d", "--handler", handler, "-v", f"{tmp_path}:/data", "--name", "again")
    container_id = cli(*made, "--restart", "always", BUSYBOX, "sh", "-c", script).out.strip()
    for times in (1, 2, 3):
        run_until(times)
        cli.node.kill()
        end.touch()
        cli.node.start()
    run_until(4)
    assert cli("ps", "-q", "--no-trunc").out.split() == [container_id]
    cli("exec", "again", "test", "-e", "/mark")
    cli("stop", "--time", "0", "again")
    cli.node.kill()
    cli.node.start()
    assert "exited" in cli("ps", "-a").out and runs.read_text().count("run") == 4
    cli("rm", "again")
    cli(*made, "--restart", "on-failure:2", BUSYBOX, "sh", "-c", script)
    for times in (5, 6, 7):
        run_until(times)
        end.touch()
    shown = ("inspect", "--format", "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}", "again")
    until(lambda: cli(*shown).out.strip() == "exited 2 3", "it does not end for good")
    cli("rm", "--force", "again")
    assert cli("ps", "-a", "-q").out.strip() == ""
    cli.node.wait_no_leaks_but_warm()


def _get(address: str, port: int) -> bytes:
    limit = time.monotonic() + 60 * PATIENCE
    while True:
        connection = http.client.HTTPConnection(address, port, timeout=30)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read()
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)
        finally:
            connection.close()


def test_logs_follow_to_the_end(cli: Cli) -> None:
    script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done; exit 3"
    name = cli("run", "-d", BUSYBOX, "sh", "-c", script).out.strip()
    followed = cli("logs", "-f", name)
    assert followed.out == "".join(f"line {number}\n" for number in range(1, 6))
    assert cli("logs", "-n", "2", name).out == "line 4\nline 5\n"
    assert re.match(r"\d{4}-\d\d-\d\dT[0-9:.]+Z line 1\n", cli("logs", "-t", name).out)
    assert "exited (3)" in cli("ps", "-a").out
    cli("rm", name)


def test_interrupt_stops_the_container(cli: Cli) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    process = cli.start("run", "--rm", BUSYBOX, "sh", "-c", script)
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60 * PATIENCE) == 130, process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert cli("ps", "-a", "-q").out.strip() == ""


def test_terminal(cli: Cli) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(cli.env)
        os.execv(sys.executable, [*COMMAND, "run", "--rm", "-it", BUSYBOX, "sh"])
    try:
        os.write(terminal, b"tty; stty size; echo $((6*7))x\n")
        seen = _read_until(terminal, b"42x")
        assert b"/dev/pts/" in seen or b"/dev/console" in seen
        os.write(terminal, b"exit 9\n")
        _read_until(terminal, None)
        _, status = os.waitpid(pid, 0)
        pid = 0
        assert os.waitstatus_to_exitcode(status) == 9
    finally:
        os.close(terminal)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _read_until(terminal: int, wanted: bytes | None, timeout: float = 60 * PATIENCE) -> bytes:
    seen, limit = b"", time.monotonic() + timeout
    while wanted is None or wanted not in seen:
        assert time.monotonic() < limit, f"the terminal showed only {seen!r}"
        if select.select([terminal], [], [], 1)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # EIO: the other end is closed
                data = b""
            if not data:
                assert wanted is None, f"the terminal ended with {seen!r}"
                return seen
            seen += data
    return seen


def test_images_are_listed_and_removed(cli: Cli) -> None:
    cli("pull", "registry.k8s.io/orlop-test/zstd:1")
    assert re.search(
        r"^registry.k8s.io/orlop-test/zstd +1 +[0-9a-f]{13} +\d", cli("images").out, re.MULTILINE
    )
    cli("rmi", "registry.k8s.io/orlop-test/zstd:1")
    assert "orlop-test/zstd" not in cli("images").out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "--rm", "registry.k8s.io/orlop-test/absent:1"), ("absent",)),
        (("run", "--rm", "Not A Name"), ("Not A Name",)),
        (("run", "--rm", BUSYBOX, "no-such-command"), ("no-such-command",)),
        (("run", "--rm", "--network", "host", BUSYBOX, "true"), ("network", "process")),
        (("run", "--rm", "-p", "http:80", BUSYBOX), ("http",)),
        (("run", "--rm", "-v", "/no/such/place:/x", BUSYBOX), ("/no/such/place",)),
        (("run", "--rm", "-m", "lots", BUSYBOX), ("lots", "512m")),
        (("run", "--rm", "--handler", "other", BUSYBOX), ("other",)),
        (("run", "--pod", "nobody", BUSYBOX), ("nobody", "orlop pod ls")),
        (("run", "--pod", "nobody", "-p", "1:2", BUSYBOX), ("ports", "orlop pod create")),
        (("run", "--env-file", "/no/such/file", BUSYBOX), ("/no/such/file",)),
        (("pod", "rm", "nobody"), ("nobody", "orlop pod ls")),
        (("exec", "nobody", "true"), ("nobody", "orlop ps")),
        (("logs", "nobody"), ("nobody",)),
        (("inspect", "nobody"), ("nobody",)),
        (("rmi", "nobody"), ("nobody",)),
    ],
)
def test_bad_input_is_one_sentence(cli: Cli, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = cli(*args, check=False)
    assert done.code not in (0, None)
    message = done.err.strip().splitlines()[-1]
    assert message.startswith("orlop: ") and "Traceback" not in done.err
    for word in words:
        assert word in message
    assert cli("ps", "-a", "-q").out.strip() == ""


def test_no_daemon() -> None:
    done = subprocess.run(
        [*COMMAND, "ps", "--socket", "/nowhere/orlop.sock"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("orlop: no daemon listens on /nowhere/orlop.sock")


def test_files_go_in_and_out(cli: Cli, tmp_path: Path) -> None:
    cli("run", "-d", "--name", "files", BUSYBOX, "sleep", "600")
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/file").write_bytes(bytes(range(256)) * 2000)
    cli("cp", os.fspath(tmp_path / "tree"), "files:/srv/copy")
    cli("cp", os.fspath(tmp_path / "tree/below/file"), "files:/tmp")
    assert cli("exec", "files", "sh", "-c", "cmp /tmp/file /srv/copy/below/file && echo same").out == "same\n"
    cli("cp", "files:/srv/copy", os.fspath(tmp_path))
    assert (tmp_path / "copy/below/file").read_bytes() == bytes(range(256)) * 2000
    cli("cp", "files:/tmp/file", os.fspath(tmp_path / "renamed"))
    assert (tmp_path / "renamed").read_bytes() == bytes(range(256)) * 2000
    assert "there already" in cli("cp", "files:/srv/copy", os.fspath(tmp_path), check=False).err
    missing = cli("cp", "files:/nothing", os.fspath(tmp_path / "x"), check=False)
    assert missing.code == 1 and "nothing" in missing.err
    assert cli("cp", "files:/tmp", "files:/srv", check=False).code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "renamed", "tree"]


def test_ports_lead_into_a_pod(cli: Cli) -> None:
    cli.node.pull(NGINX)
    cli("run", "-d", "--name", "site", NGINX)
    forwarding = cli.start("port-forward", "site", "0:80")
    try:
        assert forwarding.stdout is not None
        said = forwarding.stdout.readline().decode()
        match = re.match(r"127\.0\.0\.1:(\d+) leads to port 80 of site", said)
        assert match, said
        limit = time.monotonic() + 60 * PATIENCE
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=30)
            try:
                connection.request("GET", "/")
                assert "Welcome" in connection.getresponse().read().decode()
                break
            except (OSError, http.client.HTTPException):
                # The server inside may not listen yet.
                assert time.monotonic() < limit
                time.sleep(0.2)
            finally:
                connection.close()
    finally:
        forwarding.send_signal(signal.SIGINT)
        assert forwarding.wait(30 * PATIENCE) == 130


def test_attach_shows_what_comes_and_wait_tells_the_end(cli: Cli) -> None:
    script = "while read line; do echo heard $line; [ $line = end ] && exit 6; done"
    cli("run", "-d", "-i", "--name", "ears", BUSYBOX, "sh", "-c", script)
    waiting = cli.start("wait", "ears")
    done = cli("attach", "-i", "ears", stdin=b"one\nend\n", check=False)
    assert (done.out, done.code) == ("heard one\nheard end\n", 6)
    assert waiting.communicate(timeout=60 * PATIENCE)[0] == b"6\n"


def test_a_named_volume_goes_from_pod_to_pod(cli: Cli) -> None:
    """Of either handler; and what a snapshot kept is a volume again."""
    cli("volume", "create", "data", "--size", "64m")
    listed = cli("volume", "ls").out
    assert re.search(r"data +64\.0 MiB +shared", listed), listed
    for handler, word in (("process", "one"), ("vm", "two")):
        script = f"echo {word} >> /data/words; cat /data/words"
        done = cli("run", "--rm", "--handler", handler, "-v", "data:/data", BUSYBOX, "sh", "-c", script)
        assert done.out.split()[-1] == word
    cli("volume", "snapshot", "data", "kept")
    cli("volume", "grow", "data", "128m", check=False)
    mount = "type=volume,source=data,target=/data,readonly"
    refused = cli(
        "run", "--rm", "--handler", "process", "--mount", mount, BUSYBOX, "touch", "/data/x", check=False
    )
    assert refused.code == 1 and "Read-only" in refused.err
    cli("run", "-d", "--name", "user", "--handler", "process", "-v", "data:/data", BUSYBOX, "sleep", "1000")
    used = cli("volume", "rm", "data", check=False)
    assert used.code == 1 and "in use" in used.err
    cli("rm", "-f", "user")
    cli("volume", "rm", "data")
    cli("volume", "restore", "kept", "again")
    assert (
        json.loads(cli("volume", "inspect", "again").out)["content_source"]["snapshot"]["snapshot_id"]
        == "kept"
    )
    done = cli("run", "--rm", "--handler", "process", "-v", "again:/data", BUSYBOX, "cat", "/data/words")
    assert done.out.split() == ["one", "two"]
    missing = cli("run", "--rm", "-v", "data:/data", BUSYBOX, "true", check=False)
    assert missing.code == 125 and "no volume data" in missing.err
    cli("volume", "rm", "again")
    cli("volume", "rm", "--snapshot", "kept")
    assert not {"data", "again"} & {*cli("volume", "ls", "-q").out.split()}
    assert "kept" not in cli("volume", "ls", "--snapshots", "-q").out.split()


def test_a_container_is_stopped_where_it_is_and_told_what_to_do(cli: Cli) -> None:
    script = "trap 'echo heard; exit 9' USR1; echo up; while :; do sleep 0.1; done"
    port = free_port()
    cli("run", "-d", "--name", "told", "-p", f"127.0.0.1:{port}:80", BUSYBOX, "sh", "-c", script)
    until(lambda: "up" in cli("logs", "told").out, "it does not run")
    assert cli("port", "told").out == f"80/tcp -> 127.0.0.1:{port}\n"
    cli("pause", "told")
    refused = cli("exec", "told", "true", check=False)
    assert refused.code == 1 and "paused" in refused.err
    cli("unpause", "told")
    assert cli("exec", "told", "true").code == 0
    unknown = cli("kill", "-s", "NONSENSE", "told", check=False)
    assert unknown.code == 1 and "NONSENSE" in unknown.err
    cli("kill", "-s", "USR1", "told")
    assert cli("wait", "told").out == "9\n" and "heard" in cli("logs", "told").out
    cli("rm", "told")


def test_a_container_runs_again_in_its_pod_and_in_a_new_one(cli: Cli) -> None:
    script = "echo run by $WHO; ls /mark 2>&1; touch /mark; sleep 600"
    options = ("--name", "again", "-e", "WHO=me", "--hostname", "same")
    first = cli("run", "-d", *options, BUSYBOX, "sh", "-c", script).out.strip()
    (pod,) = cli("pod", "ls", "-q").out.split()
    until(lambda: "mark" in cli("logs", "again").out, "it does not run")
    requests = list((cli.node.scratch / "cli-logs").glob("again_*/*.request"))
    assert len(requests) == 2 and {path.stat().st_mode & 0o777 for path in requests} == {0o600}
    second = cli("restart", "-t", "0", "again").out.strip()
    assert second != first and cli("ps", "-a", "-q").out.split() == [second]
    assert cli("pod", "ls", "-q").out.split() == [pod], "it was in its pod"
    cli("stop", "-t", "0", "again")
    both = [cli.start("restart", "-t", "0", "again") for _ in range(2)]
    said = [one.communicate() for one in both]
    assert sorted(one.returncode for one in both) in ([0, 0], [0, 1]), said
    (third,) = cli("ps", "-q").out.split()
    (new,) = cli("pod", "ls", "-q").out.split()
    assert third not in (first, second) and new != pod, said
    assert cli("exec", "again", "hostname").out == "same\n"
    until(lambda: cli("logs", "again").out.count("run by me") >= 3, "it does not run")
    cli("rm", "-f", "again")
    assert not list((cli.node.scratch / "cli-logs").glob("again_*"))


def test_what_others_have_says_what_to_use_instead(cli: Cli) -> None:
    for args in (
        ["build", "."],
        ["run", "--health-startup-cmd", "x", BUSYBOX],
        ["image", "history", "x"],
    ):
        done = cli(*args, check=False)
        assert done.code == 2 and done.err.startswith("orlop: there is no ") and done.err.count("\n") == 1


def test_a_container_runs_again_while_somebody_waits(cli: Cli, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    script = "echo x >> /data/runs; echo run $(wc -l < /data/runs) $(grep -c db.local /etc/hosts); exit 4"
    options = ("-v", f"{tmp_path}:/data", "--add-host", "db.local:192.0.2.7", "--restart", "on-failure:2")
    options = ("--name", "repeated", *options)
    done = cli("run", "--rm", *options, BUSYBOX, "sh", "-c", script, check=False)
    assert (done.out, done.code) == ("run 1 1\nrun 2 1\nrun 3 1\n", 4), done
    assert cli("ps", "-a", "-q").out.strip() == ""
    assert not list((cli.node.scratch / "cli-logs").glob("repeated_*"))
    forever = cli.start("run", "--rm", "--restart", "always", BUSYBOX, "sh", "-c", "echo here; sleep 1")
    assert forever.stdout is not None
    for _ in range(2):
        assert forever.stdout.readline() == b"here\n"
    forever.send_signal(signal.SIGINT)
    forever.communicate()
    assert forever.returncode == 130
    until(lambda: cli("ps", "-a", "-q").out.strip() == "", "it is still there")
    lasting = cli.start("run", "--rm", "--restart", "on-failure", BUSYBOX, "sh", "-c", "echo up; sleep 600")
    assert lasting.stdout is not None and lasting.stdout.readline() == b"up\n"
    (pod,) = cli("pod", "ls", "-q").out.split()
    os.kill(int(json.loads(cli.node.crictl("inspectp", pod).out)["info"]["pid"]), signal.SIGKILL)
    assert lasting.stdout.readline() == b"up\n", lasting.communicate()
    lasting.send_signal(signal.SIGINT)
    lasting.communicate()
    until(lambda: not cli("pod", "ls", "-q").out.strip(), "the pod that was made anew does not go")
    rejected = (
        ("-d", "--rm", "--restart", "always"),
        ("-i", "--restart", "always"),
        ("--restart", "sometimes"),
    )
    for wrong in (*rejected, ("--add-host", "db")):
        refused = cli("run", *wrong, BUSYBOX, check=False)
        assert refused.code == 2 and refused.err.count("\n") == 1, refused
