"""The daemon's own affairs: configuration, lock, log, service manager, metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from orlop import daemon, tracing
from orlop.config import Config, MetricsConfig
from orlop.errors import AlreadyExists, FailedPrecondition, NotFound
from orlop.pods.metrics import MetricsServer, RpcMetrics
from tests.unit.pods_double import World, make_service, pod_spec


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("colour = 1", "colour"),
        ("[vm]\nmax_vcpus = 'many'", "max_vcpus"),
        ("default_handler = 'jail'", "default_handler"),
        ("= nonsense", "config.toml"),
        (None, "does not exist"),
    ],
)
def test_a_wrong_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_text(content)
    assert daemon.main(["--config", str(path)]) == daemon.EXIT_USAGE
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_only_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"root = '{tmp_path}/root'\nstate = '{tmp_path}/state'\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        assert daemon.main(["--config", str(path)]) == daemon.EXIT_FAILED
    finally:
        logging.getLogger().handlers[:], logging.getLogger().level = before
    assert "must run as root" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_one_daemon_at_a_time(tmp_path: Path) -> None:
    config = Config(root=str(tmp_path / "root"), state=str(tmp_path / "state"))
    with (
        daemon.only_daemon(config),
        pytest.raises(AlreadyExists, match=f"pid {os.getpid()}"),
        daemon.only_daemon(config),
    ):
        pass
    with daemon.only_daemon(config):
        pass
    (tmp_path / "file").write_text("")
    broken = Config(root=str(tmp_path / "file" / "root"), state=str(tmp_path / "state"))
    with pytest.raises(FailedPrecondition, match="cannot be made"), daemon.only_daemon(broken):
        pass


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@orlop-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}" if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        daemon.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    daemon.notify("STOPPING=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    daemon.notify("READY=1")


def test_json_lines() -> None:
    record = logging.LogRecord("orlop.x", logging.WARNING, "f", 1, "pod %s\n%d", ("ü", 1), None)
    line = daemon.JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["level"], fields["logger"], fields["message"]) == ("warning", "orlop.x", "pod ü\n1")


def test_a_message_is_one_line() -> None:
    text = "guest: x\n2026-01-01 WARNING orlop: forged\x1b[2J"
    record = logging.LogRecord("orlop.x", logging.WARNING, "f", 1, "%s", (text,), None)
    line = daemon.LineFormatter("%(levelname)s %(message)s").format(record)
    assert line == "WARNING guest: x\\n2026-01-01 WARNING orlop: forged\\x1b[2J"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_metrics(tmp_path: Path) -> None:
    service, _ = make_service(tmp_path, World())
    await service.open()
    await service.run_pod(pod_spec())
    rpcs = RpcMetrics()
    config = MetricsConfig(port=free_port())
    server = MetricsServer(config, rpcs, service.ledger, lambda: {"orlop_vm_pool_ready": 2.0})
    await server.start()
    with rpcs.rpc("Version"):
        pass
    with pytest.raises(NotFound), rpcs.rpc("PodSandboxStatus"):
        raise NotFound("pod x does not exist")
    url = f"http://127.0.0.1:{config.port}/metrics"
    response = await asyncio.to_thread(urllib.request.urlopen, url)
    text = response.read().decode()
    response.close()
    for line in (
        'orlop_rpcs_total{code="ok",rpc="Version"} 1.0',
        'orlop_rpcs_total{code="not_found",rpc="PodSandboxStatus"} 1.0',
        'orlop_rpc_seconds_count{rpc="Version"} 1.0',
        'orlop_pods{handler="vm",phase="ready"} 1.0',
        "orlop_vm_pool_ready 2.0",
    ):
        assert line in text
    clash = MetricsServer(config, rpcs, service.ledger)
    with pytest.raises(FailedPrecondition, match="cannot be served"):
        await clash.start()
    await server.stop()
    await service.close()


def test_spans_cost_nothing_when_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert tracing.span("a") is tracing.span("b", pod="x")
        with RpcMetrics().rpc("Version"):
            pass
    with caplog.at_level(logging.DEBUG, "orlop.tracing"), tracing.span("sandbox.run", pod="abc"):
        pass
    assert "sandbox.run pod=abc" in caplog.text


async def test_spans_reach_a_collector(tmp_path: Path) -> None:
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

    got: list[messages.ExportTraceServiceRequest] = []

    class Collector(services.TraceServiceServicer):
        def Export(self, request: messages.ExportTraceServiceRequest, context: object) -> object:  # noqa: N802
            got.append(request)
            return messages.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    services.add_TraceServiceServicer_to_server(Collector(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tracing.configure(f"http://127.0.0.1:{port}")
    try:
        service, _ = make_service(tmp_path, World())
        await service.open()
        with RpcMetrics().rpc("RunPodSandbox"):
            await service.run_pod(pod_spec())
        await service.close()
    finally:
        await asyncio.to_thread(tracing.shutdown)
        server.stop(None).wait()
    spans = {
        span.name: span
        for request in got
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    root = spans["cri.RunPodSandbox"]
    assert {spans[name].parent_span_id for name in ("pods.record", "sandbox.run")} == {root.span_id}
    assert {span.trace_id for span in spans.values()} == {root.trace_id}
