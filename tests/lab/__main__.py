"""``python -m tests.lab MACHINE [COMMAND...]``: tests, or any command, on another machine than this one.

``debian13`` is a root of Debian 13, ``doors13`` are podman's tests there, ``kvm`` is an emulated computer
whose KVM works; ``deb`` builds the Debian package and ``bare`` installs it where nothing else is. Needs root.
Ends with 0 only when the command did.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from tests.conformance.tools import ToolError
from tests.lab import kvm as lab
from tests.lab import packages, root

FAST = (
    "tests/e2e/test_vm_sandbox.py",
    "tests/e2e/test_guest_containers.py",
    "tests/e2e/test_hypervisor_machines.py",
    "tests/e2e/test_vm_socket_volumes.py",
    "tests/e2e/test_process_pods.py",
    "tests/e2e/test_cli_run.py",
)
"""The fast part of the end-to-end tests that meets what differs: QEMU, the kernel, Python, crun and runc."""


BUILD = Path("build/debian13")
"""Where what a run in Debian 13 puts into its ``build`` is copied to."""

INSIDE = "tests/lab/machine/all.sh"


def debian13(command: list[str]) -> None:
    """Set Orlop up in Debian 13 and run a command there, or the fast tests."""
    # The guest that the set-up has built is the one to test: no network is needed for it.
    own = {"ORLOP_TEST_CACHE": "/var/lib/orlop"}
    tests = [".venv/bin/python", "-m", "pytest", "-q", "--junitxml", "build/tests/debian13.xml", *FAST]
    if not command:
        root.make_tools()
    with root.debian13() as place:
        root.say(f"running {'a command' if command else 'the fast end-to-end tests'} in Debian 13")
        try:
            # Nothing that the tests leave in the network can outlive a namespace of their own.
            root.enter(place, command or tests, network=bool(command), env=own)
        finally:
            made = place / root.INSIDE / "build"
            if made.is_dir():
                shutil.copytree(made, BUILD, dirs_exist_ok=True)


def doors() -> None:
    """Set Orlop up in Debian 13 and let its podman judge ``orlop-oci`` there."""
    python = ".venv/bin/python"
    root.make_tools()
    with root.debian13() as place:
        # What they need is fetched first: they run in a network namespace of their own.
        root.enter(place, [python, "-c", "from bench import peers; peers.debian_podman()"])
        root.say("running podman's tests in Debian 13")
        report = "build/tests/doors-13.xml"
        tests = [python, "-m", "pytest", "-q", "--junitxml", report, "tests/doors/test_podman.py"]
        root.enter(place, tests, network=False, env={"ORLOP_TEST_CACHE": "/var/lib/orlop"})


def kvm(command: list[str], minutes: int) -> None:
    """Boot the machine with KVM and run a command there, or its tests."""
    line = shlex.join(command or ["sh", INSIDE])
    code = lab.run_in(line, minutes)
    if code:
        raise ToolError(f"{line} in the machine ended with {code}")


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab")
    parser.add_argument("machine", choices=("debian13", "doors13", "kvm", "deb", "bare"))
    parser.add_argument("--minutes", type=int, default=90, help="bound of what the emulated computer does")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="run there instead of the tests")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        match options.machine:
            case "debian13":
                debian13(options.command)
            case "doors13":
                doors()
            case "kvm":
                kvm(options.command, options.minutes)
            case "deb":
                packages.build()
            case "bare":
                packages.install(packages.build())
    except ToolError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    root.say(f"{options.machine}: done in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
