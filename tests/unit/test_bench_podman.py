"""podman's answers, as the benchmark's client reads them."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.podman import NotFound, Podman, demultiplexed

from orlop.cri.api import runtime_v1_pb2 as pb

OUT, ERR = b"\x01\0\0\0", b"\x02\0\0\0"


def framed(head: bytes, data: bytes) -> bytes:
    return head + len(data).to_bytes(4, "big") + data


def test_pieces_go_to_their_streams() -> None:
    data = framed(OUT, b"one ") + framed(ERR, b"bad") + framed(OUT, b"") + framed(OUT, b"two")
    assert demultiplexed(data) == (b"one two", b"bad")
    assert demultiplexed(b"") == (b"", b"")


@pytest.mark.parametrize("cut", [1, 7, 9])
def test_a_cut_piece_is_an_error(cut: int) -> None:
    with pytest.raises(RuntimeError, match="within a piece"):
        demultiplexed(framed(OUT, b"word")[:cut])


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by method and path, whatever the query is."""

    answers: dict[str, tuple[int, bytes]]

    def address_string(self) -> str:
        return "unix"

    def log_request(self, *_arguments: object) -> None:
        pass

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0].removeprefix("/v4.0.0/libpod/")
        status, body = self.answers[f"{self.command} {path}"]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


for method in ("GET", "POST", "DELETE"):
    setattr(Handler, f"do_{method}", Handler.answer)


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[dict[str, tuple[int, bytes]]]:
    Handler.answers = {}
    with socketserver.UnixStreamServer(f"{tmp_path}/s", Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Handler.answers
        finally:
            server.shutdown()
            thread.join()


def exec_answers(answers: dict[str, tuple[int, bytes]]) -> None:
    answers["POST containers/c/exec"] = (201, b'{"Id": "e"}')
    answers["POST exec/e/start"] = (200, framed(OUT, b"hello"))


REQUEST = pb.ExecSyncRequest(container_id="c", cmd=["true"])


def test_exec_is_three_requests(answers: dict[str, tuple[int, bytes]], tmp_path: Path) -> None:
    exec_answers(answers)
    answers["GET exec/e/json"] = (200, b'{"ExitCode": 7}')
    done = Podman(f"{tmp_path}/s").call("ExecSync", REQUEST)
    assert (done.exit_code, done.stdout) == (7, b"hello")


def test_exit_code_of_a_session_that_is_gone(answers: dict[str, tuple[int, bytes]], tmp_path: Path) -> None:
    exec_answers(answers)
    answers["GET exec/e/json"] = (404, b"no such exec session")
    events = [{"Actor": {"Attributes": {"containerExitCode": code}}} for code in ("0", "3")]
    answers["GET events"] = (200, b"\n".join(json.dumps(event).encode() for event in events))
    assert Podman(f"{tmp_path}/s").call("ExecSync", REQUEST).exit_code == 3


def test_a_pull_fails_by_a_line_of_its_stream(answers: dict[str, tuple[int, bytes]], tmp_path: Path) -> None:
    answers["POST images/pull"] = (200, b'{"stream": "Trying"}\n{"error": "no such manifest"}\n')
    with pytest.raises(RuntimeError, match="no such manifest"):
        Podman(f"{tmp_path}/s").call("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image="x")))


def test_a_pod_that_does_not_start_is_removed(answers: dict[str, tuple[int, bytes]], tmp_path: Path) -> None:
    answers["POST pods/create"] = (201, b'{"Id": "p"}')
    answers["POST pods/p/start"] = (409, b"no network")
    answers["DELETE pods/p"] = (404, b"asked for")
    with pytest.raises(NotFound, match="asked for"):
        Podman(f"{tmp_path}/s").call("RunPodSandbox", pb.RunPodSandboxRequest())
