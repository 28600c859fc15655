"""One runtime through files of the suite, inside a place of its own: ``place.inside`` starts it."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.conformance import images, tools
from tests.node import node, scratch_directory
from tests.patience import PATIENCE
from tests.podman_system import image, place, suite

OURS = "orlop-oci"
FILE_TIMEOUT = 3600 * PATIENCE


def podman(env: dict[str, str], *words: str) -> None:
    """Call podman, or raise ToolError."""
    tools.run(["env", "-i", *(f"{key}={value}" for key, value in env.items()), "podman", *words])


def run_file(path: Path, output: Path, env: dict[str, str], pattern: str) -> None:
    """bats on one file, its TAP into another."""
    argv = ["bats", "--tap", *(["--filter", pattern] if pattern else []), os.fspath(path)]
    start = time.monotonic()
    with output.open("wb") as stream:
        # A session of its own has no terminal, of which some tests would take hold.
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=path.parents[2],
            start_new_session=True,
        )
        try:
            process.wait(FILE_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    output.with_suffix(".seconds").write_text(f"{time.monotonic() - start:.0f}\n")


def main() -> int:
    """Run them; the outcomes are in the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runtime")
    parser.add_argument("output", type=Path)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--filter", default="")
    options = parser.parse_args()
    directory = suite.directory()
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory("orlop-bats-"))
        stack.callback(place.unmount, scratch)
        place.install(scratch, suite.roots())
        stack.enter_context(place.system_log())
        address = f"127.0.0.1:{tools.free_port()}"
        registry = stack.enter_context(images.serve(scratch / "registry", address, read_only=False))
        image.fill(registry)
        one = None
        if options.runtime == OURS:
            one = stack.enter_context(node(registry))
            one.wait_ready()
        else:
            place.hide_hybrid()
        place.write_settings(scratch, registry, options.runtime, one)
        env = place.environment(scratch, options.runtime)
        podman(env, "pull", "-q", f"{image.HOST}/{image.USER}/{image.NAME}:{image.TAG}")
        stack.callback(podman, env, "rm", "--all", "--force", "--time", "0")
        stack.callback(podman, env, "pod", "rm", "--all", "--force", "--time", "0")
        for name in options.files:
            # Tests with settings of their own get CNI's bridge, which has the addresses of netavark's.
            subprocess.run(["ip", "link", "delete", "cni-podman0"], capture_output=True, check=False)
            run_file(directory / f"{name}.bats", options.output / f"{name}.tap", env, options.filter)
            print(f"{options.runtime}: {name} done", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
