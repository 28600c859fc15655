"""``python -m tests.lab debian13 [COMMAND...]``: tests, or any command, in a root of Debian 13.

Needs root. Ends with 0 only when the command did.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.conformance.tools import ToolError
from tests.lab import root

FAST = (
    "tests/e2e/test_vm_sandbox.py",
    "tests/e2e/test_guest_containers.py",
    "tests/e2e/test_hypervisor_machines.py",
    "tests/e2e/test_process_pods.py",
    "tests/e2e/test_cli_run.py",
)
"""The fast part of the end-to-end tests that meets what differs: QEMU, the kernel, Python, crun and runc."""


def debian13(command: list[str]) -> None:
    """Set Orlop up in Debian 13 and run a command there, or the fast tests."""
    # The guest that the set-up has built is the one to test: no network is needed for it.
    own = {"ORLOP_TEST_CACHE": "/var/lib/orlop"}
    with root.debian13() as place:
        if command:
            root.enter(place, command, env=own)
            return
        root.say("running the fast end-to-end tests in Debian 13")
        # Nothing that they leave in the network can outlive a namespace of their own.
        root.enter(place, [".venv/bin/python", "-m", "pytest", "-q", *FAST], network=False, env=own)


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab")
    parser.add_argument("machine", choices=("debian13",))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="run there instead of the tests")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        debian13(options.command)
    except ToolError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    root.say(f"{options.machine}: done in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
