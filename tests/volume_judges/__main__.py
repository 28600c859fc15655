"""Judge each kind of volume under each handler, and on the host: ``make volume-judges``. Needs root.

What a place fails and ``process`` does not is a difference, which needs a reason in ``reasons.toml``: the
command fails for one that has none. The tables go to ``build/volume-judges.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orlop.client import volumes
from orlop.client.calls import VolumeClient
from orlop.client.launch import NamedMount
from orlop.errors import FailedPrecondition, NotFound
from tests.conformance import images, tools
from tests.e2e.loop_devices import loop_devices
from tests.node import BUSYBOX, Node, node
from tests.patience import PATIENCE
from tests.volume_judges import programs
from tests.volume_judges.judges import FILES, JUDGES, OK, SKIPPED, Findings, Place
from tests.volumes.kubelet import pod_directory

REPORT = Path("build/volume-judges.md")
REASONS = Path(__file__).with_name("reasons.toml")
LIMIT = 1200 * PATIENCE
"""Seconds for one program."""
SIZE = 512 << 20
KINDS = {
    "root": "/judged",
    "emptyDir": "/empty",
    "emptyDir, Memory": "/memory",
    "hostPath": "/host",
    "named, by the host": "/named-host",
    "named, by the guest": "/named-guest",
    "Block": "/dev/judged",
}
NOT_FOR_PROCESS = "named, by the guest"
BESIDE = {NOT_FOR_PROCESS: "named, by the host"}
"""Whose findings under ``process`` those of a kind are held against which that handler has not."""
YARDSTICK = "process"

BOX = "/usr/judges"
PASSWD = "root:x:0:0:::\\ndaemon:x:1:1:::\\nnobody:x:65534:65534:::"
GROUP = "root:x:0:\\ndaemon:x:1:\\nnogroup:x:65534:"

FEW = 4
"""Trials of one reason that are named; more are counted."""

NO_POOL = {"vm": {"pool": {"size": 0}}}
"""One VM is used, and others that wait would take its processor."""

SLEEP = """
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **words) { return sleep(count > 1 ? atoi(words[1]) : 0); }
"""

Mount = dict[str, Any]
All = dict[tuple[str, str, str], Findings]
"""By kind, judge and place."""


@dataclass(frozen=True)
class Reason:
    """Why a trial fails under ``vm`` on these kinds, and not under ``process``."""

    judge: str
    kinds: tuple[str, ...]
    trials: re.Pattern[str]
    text: str


def reasons() -> list[Reason]:
    """The list."""
    return [
        Reason(one["judge"], tuple(one["kinds"]), re.compile(one["trials"]), one["reason"])
        for one in tomllib.loads(REASONS.read_text())["difference"]
    ]


def say(text: str) -> None:
    """Tell a person how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def tool_box(scratch: Path) -> Iterator[Path]:
    """The programs and their files, in a directory."""
    box = scratch / "box"
    shutil.copytree(programs.all_of_them(), box)
    # pjdfstest copies what is called so and starts the copy: busybox does nothing by another name.
    shutil.copy(tools.compile_c("sleep", SLEEP), box / "sleep")
    for name, text in FILES.items():
        (box / name).write_text(text)
    yield box


def on_the_host(box: Path, scratch: Path) -> Place:
    """The host itself."""

    def run(*command: str) -> tuple[int, str]:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LIMIT, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return Place("host", run, os.fspath(box), os.fspath(scratch))


@contextlib.asynccontextmanager
async def named(one: Node, kinds: list[str]) -> AsyncIterator[list[Mount]]:
    """Mounts of new named volumes of these kinds, which are removed at the end."""
    names = {kind: f"judged-{os.urandom(3).hex()}" for kind in kinds if kind.startswith("named")}
    async with volumes.connect(one.socket) as client:
        try:
            for kind, name in names.items():
                await volumes.create(client, name, SIZE, vm=kind == NOT_FOR_PROCESS)
            wanted = [NamedMount(name, KINDS[kind]) for kind, name in names.items()]
            async with volumes.provided(Path(one.socket), wanted) as found:
                yield [mount(each.container_path, each.host_path) for each in found]
        finally:
            for name in names.values():
                await removed(client, name)


async def removed(client: VolumeClient, name: str) -> None:
    """Remove a volume whose pods have ended: its device goes a moment after them."""
    async with asyncio.timeout(60 * PATIENCE):
        while True:
            with contextlib.suppress(NotFound):
                try:
                    await volumes.remove(client, name)
                except FailedPrecondition:
                    await asyncio.sleep(0.1)
                    continue
            return


def mount(inside: str, source: str | Path, *, read_only: bool = False) -> Mount:
    """As crictl has it."""
    return {"container_path": inside, "host_path": os.fspath(source), "readonly": read_only}


@contextlib.asynccontextmanager
async def in_a_pod(one: Node, handler: str, kinds: list[str], box: Path, block: Path) -> AsyncIterator[Place]:
    """A container under this handler, with a volume of each kind."""
    pod = one.pod_config(f"judged-{handler}")
    shared = one.scratch / f"host-{handler}"
    shared.mkdir()
    with pod_directory(one.scratch / f"kubelet-{handler}", pod["metadata"]["uid"]) as directory:
        mounts = [
            mount("/box", box, read_only=True),
            mount(KINDS["emptyDir"], directory.empty_dir("disk")),
            mount(KINDS["emptyDir, Memory"], directory.empty_dir("memory", memory=SIZE)),
            mount(KINDS["hostPath"], shared),
        ]
        device = {"container_path": KINDS["Block"], "host_path": os.fspath(block), "permissions": "rwm"}
        pod_id = one.run_pod(pod, handler)
        try:
            async with named(one, kinds) as more:
                sleep, mounts = ("sleep", "1000000"), mounts + more
                container = one.create(pod_id, pod, BUSYBOX, *sleep, mounts=mounts, devices=[device])
                one.crictl("start", container)

                def run(*command: str) -> tuple[int, str]:
                    done = one.crictl("exec", container, *command, check=False, timeout=LIMIT)
                    return done.code, done.out + done.err

                # From the root: what is judged is not where the judge comes from.
                users = f"printf '{PASSWD}\\n' >/etc/passwd; printf '{GROUP}\\n' >/etc/group"
                prepare = (
                    f"cp -r /box {BOX}; rm /bin/sleep; cp {BOX}/sleep /bin; mkdir {KINDS['root']}; {users}"
                )
                code, output = run("sh", "-ec", prepare)
                if code != 0:
                    raise RuntimeError(f"{handler}: the programs did not come into the container: {output}")
                try:
                    yield Place(handler, run, BOX, "/tmp")
                finally:
                    # Before the volumes are removed, which nothing may have any more.
                    one.remove_pod(pod_id)
        except BaseException:
            one.crictl("rmp", "-f", pod_id, check=False)
            raise


def judged(place: Place, paths: dict[str, str], chosen: list[str], found: All) -> None:
    """Everything in one place, kind by kind."""
    for kind, path in paths.items():
        for judge in chosen:
            begin = time.monotonic()
            findings = JUDGES[judge](place, path, kind == "Block")
            if not findings:
                continue
            found[kind, judge, place.name] = findings
            say(f"{place.name}, {kind}: {judge}, {score(findings)}, {time.monotonic() - begin:.0f} s")


def score(findings: Findings | None) -> str:
    """How many of those that were tried passed."""
    if findings is None:
        return "-"
    tried = [verdict for verdict in findings.values() if verdict != SKIPPED]
    return f"{sum(verdict == OK for verdict in tried)} of {len(tried)}"


def differences(found: All, known: list[Reason]) -> Iterator[tuple[str, str, str, str, str]]:
    """Kind, judge, trial, what it said under ``vm``, and why; "" for one without a reason."""
    for (kind, judge, name), findings in found.items():
        if name != "vm":
            continue
        beside = found.get((BESIDE.get(kind, kind), judge, YARDSTICK), {})
        for trial, verdict in findings.items():
            if verdict in (OK, SKIPPED) or beside.get(trial, OK) != OK:
                continue
            fitting = (
                one.text
                for one in known
                if one.judge == judge and kind in one.kinds and one.trials.fullmatch(trial)
            )
            yield kind, judge, trial, verdict, next(fitting, "")


def report(found: All, known: list[Reason]) -> tuple[str, int]:
    """The tables, and how many differences have no reason."""
    names = list(dict.fromkeys(name for _, _, name in found))
    lines = ["| volume | judge | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for kind, judge in dict.fromkeys((kind, judge) for kind, judge, _ in found):
        cells = [score(found.get((kind, judge, name))) for name in names]
        lines.append(f"| {kind} | {judge} | " + " | ".join(cells) + " |")
    different = list(differences(found, known))
    open_ones = [one for one in different if not one[-1]]
    lines += ["", "| fails under `vm` alone | judge | trials | reason |", "|---|---|---|---|"]
    for judge, kind, why in dict.fromkeys((judge, kind, why) for kind, judge, *_, why in different if why):
        trials = [trial for a, b, trial, _, c in different if (a, b, c) == (kind, judge, why)]
        named_ones = ", ".join(trials) if len(trials) <= FEW else f"{len(trials)}"
        lines.append(f"| {kind} | {judge} | {named_ones} | {why} |")
    lines += ["", f"Without a reason: {len(open_ones)}", ""]
    lines += [f"- vm, {kind}, {judge}, {trial}: {verdict}" for kind, judge, trial, verdict, _ in open_ones]
    lines += ["", "What fails under `process` or on the host too is the set-up's:", ""]
    for (kind, judge, name), findings in found.items():
        for trial, verdict in findings.items():
            if name != "vm" and verdict not in (OK, SKIPPED):
                lines.append(f"- {name}, {kind}, {judge}, {trial}: {verdict}")
    return "\n".join(lines) + "\n", len(open_ones)


async def run(options: argparse.Namespace, found: All) -> None:
    """Judge what the options ask for."""
    kinds, chosen = options.kind or list(KINDS), options.judge or list(JUDGES)
    with (
        images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as registry,
        node(registry, extra=NO_POOL) as one,
    ):
        one.wait_ready()
        one.pull(BUSYBOX)
        with tool_box(one.scratch) as box:
            for handler in options.handlers.split(","):
                if handler == "host":
                    here = one.scratch / "judged"
                    here.mkdir()
                    judged(on_the_host(box, one.scratch), {"hostPath": os.fspath(here)}, chosen, found)
                    continue
                own = [kind for kind in kinds if handler != YARDSTICK or kind != NOT_FOR_PROCESS]
                with loop_devices(one.scratch) as make:
                    async with in_a_pod(one, handler, own, box, make(mib=32)) as place:
                        judged(place, {kind: KINDS[kind] for kind in own}, chosen, found)


def main() -> int:
    """Run, and write the report."""
    parser = argparse.ArgumentParser(prog="tests.volume_judges", description=__doc__)
    parser.add_argument("--handlers", default="host,process,vm")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one; may be repeated")
    parser.add_argument("--judge", action="append", choices=JUDGES, help="only this one; may be repeated")
    found: All = {}
    try:
        asyncio.run(run(parser.parse_args(), found))
    finally:
        # Of minutes of judging nothing is lost when clearing up fails.
        text, without_reason = report(found, reasons())
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(text)
        print(text, flush=True)
    if without_reason:
        print(f"{without_reason} differences have no reason in {REASONS.name}", file=sys.stderr)
    return 1 if without_reason else 0


if __name__ == "__main__":
    sys.exit(main())
