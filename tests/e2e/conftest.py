"""Fixtures of the end-to-end tests. They need root and the packages that ./setup.sh installs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conformance import images, tools
from tests.node import BUSYBOX, Node, node


@pytest.fixture(scope="session", autouse=True)
def needs_root() -> None:
    """Say it once and clearly: these tests are never skipped."""
    if os.geteuid() != 0:
        pytest.exit("the end-to-end tests need root (tests/unit do not)", returncode=2)


@pytest.fixture(scope="session")
def registry() -> Iterator[str]:
    """docker-registry on loopback with every test image, for the whole session."""
    with images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as address:
        yield address


@pytest.fixture(scope="session")
def shared_node(registry: str) -> Iterator[Node]:
    """One node for all tests that need no daemon of their own; pods of both handlers."""
    with node(registry) as one:
        one.wait_ready()
        yield one


@pytest.fixture
def client_node(shared_node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """The shared node, which ``orlop.connect()`` finds."""
    monkeypatch.setenv("ORLOP_SOCKET", shared_node.socket)
    monkeypatch.setenv("ORLOP_LOG_ROOT", os.fspath(shared_node.scratch / "client-logs"))
    shared_node.remove_all()
    shared_node.pull(BUSYBOX)
    yield shared_node
    shared_node.remove_all()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure: what is promised must have run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("ORLOP_NO_SKIP") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
