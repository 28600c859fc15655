"""Answers that are no objects of the API, as they come over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orlop.errors import NotFound, ResourceExhausted, Unavailable
from orlop.tenants.api import connect


class Handler(BaseHTTPRequestHandler):
    """Answers as a node behind the API server does, or as the server does for one that is not there."""

    def do_GET(self) -> None:
        code = {"/api/v1/nodes/gone/proxy/x": 404, "/api/v1/nodes/mute/proxy/x": 503}.get(self.path, 200)
        body = b"x" * 1000
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing."""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        path = tmp_path / "kubeconfig"
        path.write_text(
            f"""{{apiVersion: v1, kind: Config, current-context: c,
            clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{server.server_port}"}}}}],
            users: [{{name: c, user: {{}}}}],
            contexts: [{{name: c, context: {{cluster: c, user: c}}}}]}}"""
        )
        try:
            yield path
        finally:
            server.shutdown()
            serving.join()


async def test_what_a_node_answers(kubeconfig: Path) -> None:
    async with connect(kubeconfig) as api:
        assert await api.read("/api/v1/nodes/one/proxy/x") == b"x" * 1000
        with pytest.raises(ResourceExhausted, match="more than 999 bytes"):
            await api.read("/api/v1/nodes/one/proxy/x", largest=999)
        with pytest.raises(NotFound):
            await api.read("/api/v1/nodes/gone/proxy/x")
        with pytest.raises(Unavailable):
            await api.read("/api/v1/nodes/mute/proxy/x")
        # The connection is whole after each of them.
        assert await api.read("/api/v1/nodes/one/proxy/x") == b"x" * 1000


async def test_nobody_answers(kubeconfig: Path) -> None:
    kubeconfig.write_text(kubeconfig.read_text().replace("http://127.0.0.1", "http://127.0.0.254"))
    async with connect(kubeconfig) as api:
        with pytest.raises(Unavailable, match="does not answer"):
            await api.read("/x")
