"""Streams between real pipes and the wire, and the channel they travel on."""

import os
import socket
from collections.abc import Iterator

import pytest

from orlop.guest.channel import Channel
from orlop.guest.loop import Loop
from orlop.guest.streams.pipes import InputPipe, OutputPipe
from orlop.wire.flow import WINDOW, Receiver, Sender
from orlop.wire.framing import Frame, Kind, Parser, frame, preamble

NONCE = b"0123456789abcdef"


class Peer:
    """The host's end of a channel whose other end a loop serves."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.loop = Loop(self.problems.append)
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self.parser = Parser(NONCE)
        self.greetings = 0
        self.lost = 0
        self.seen: list[Frame] = []
        self.channel = Channel(self.loop, theirs.detach(), self._greeting)
        self.channel.on_frame = self.seen.append
        self.channel.on_lost = self._on_lost

    def _greeting(self, received: Frame) -> bytes:
        self.greetings += 1
        return b'{"hello":1}'

    def _on_lost(self) -> None:
        self.lost += 1

    def turn(self, rounds: int = 3) -> None:
        for _ in range(rounds):
            self.loop.run_once(0)
        assert not self.problems, self.problems[0]

    def greet(self, nonce: bytes = NONCE) -> None:
        self.parser = Parser(nonce)
        self.socket.sendall(preamble(nonce) + frame(Kind.HELLO, 0, b"{}"))
        self.turn()

    def take(self) -> list[Frame]:
        self.turn()
        try:
            return self.parser.feed(self.socket.recv(4 << 20))
        except BlockingIOError:
            return []


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.socket.close()


def test_a_greeting_is_answered_with_its_nonce(peer: Peer) -> None:
    peer.greet()
    sync, hello = peer.take()
    assert sync.payload == NONCE
    assert hello.kind is Kind.HELLO


def test_nothing_is_heard_before_a_greeting(peer: Peer) -> None:
    peer.socket.sendall(frame(Kind.REQUEST, 1, b"{}"))
    peer.turn()
    assert peer.seen == []


def test_a_new_daemon_is_heard_after_half_a_frame_of_the_old_one(peer: Peer) -> None:
    peer.greet()
    peer.take()
    peer.channel.send(frame(Kind.EVENT, 0, b"{}"))
    peer.socket.sendall(frame(Kind.REQUEST, 1, b"{" + b" " * 500 + b"}")[:100])
    peer.turn()
    peer.greet(b"f" * 16)
    assert [f.kind for f in peer.take()] == [Kind.SYNC, Kind.HELLO]
    peer.socket.sendall(frame(Kind.REQUEST, 2, b"{}"))
    peer.turn()
    assert [f.stream for f in peer.seen] == [2]
    assert peer.lost == 1


def test_a_daemon_that_goes_is_noticed_and_the_loop_does_not_spin(peer: Peer) -> None:
    peer.greet()
    peer.socket.close()
    peer.turn()
    assert peer.lost == 1
    assert not peer.channel.greeted
    peer.channel.send(frame(Kind.EVENT, 0, b"{}"))
    assert peer.channel.idle


def test_garbage_ends_the_talk_and_a_greeting_mends_it(peer: Peer) -> None:
    peer.greet()
    peer.take()
    peer.socket.sendall(b"\x7f" * 64)
    peer.turn()
    assert not peer.channel.greeted
    peer.greet(b"a" * 16)
    assert peer.channel.greeted


class Host:
    """Collects what an output sends, and consumes it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.parser = Parser()
        self.parser.feed(preamble(NONCE))
        self.receiver = Receiver(7)
        self.data = b""
        self.frames: list[Frame] = []

    def send(self, encoded: bytes) -> None:
        self.frames += self.parser.feed(encoded)

    def serve(self, output: OutputPipe) -> None:
        while self.frames:
            received = self.frames.pop(0)
            if received.kind is Kind.DATA:
                fresh = self.receiver.data(received.offset, received.payload)
                self.data += fresh
                ack = self.receiver.consumed(len(fresh))
            else:
                self.receiver.end(received.offset)
                ack = self.receiver.end_consumed()
            for one in self.parser.feed(ack):
                output.on_frame(one)
            self.loop.run_once(0)


def run(loop: Loop, rounds: int = 20) -> None:
    for _ in range(rounds):
        loop.run_once(0)


def test_output_arrives_whole_and_ends() -> None:
    loop = Loop(pytest.fail)
    reader, writer = os.pipe()
    host = Host(loop)
    done: list[bool] = []
    output = OutputPipe(loop, host.send, 7, reader, paused=False)
    output.on_done = lambda: done.append(True)
    os.write(writer, b"x" * 5000)
    os.close(writer)
    run(loop)
    host.serve(output)
    assert host.data == b"x" * 5000
    assert done == [True]


def test_without_a_daemon_the_pipe_fills_and_nothing_is_lost() -> None:
    loop = Loop(pytest.fail)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    host = Host(loop)
    output = OutputPipe(loop, host.send, 7, reader, paused=True)
    written = 0
    for _ in range(60):
        try:
            written += os.write(writer, b"%06d\n" % written * 500)
        except BlockingIOError:
            loop.run_once(0)
    with pytest.raises(BlockingIOError):
        for _ in range(100):
            written += os.write(writer, b"z" * 4096)
            loop.run_once(0)
    assert output.offsets().written == WINDOW
    assert host.frames == []
    output.resume(0)
    os.close(writer)
    run(loop)
    host.serve(output)
    assert len(host.data) == written
    assert output.finished


def test_a_reader_that_goes_away_does_not_hold_up_the_process() -> None:
    loop = Loop(pytest.fail)
    reader, writer = os.pipe()
    host = Host(loop)
    output = OutputPipe(loop, host.send, 7, reader, paused=False)
    output.on_frame(Frame(Kind.RESET, 7))
    for _ in range(50):
        os.write(writer, b"y" * 60000)
        run(loop, 2)
    os.close(writer)
    run(loop)
    assert output.finished


def test_input_is_acknowledged_when_the_process_has_it() -> None:
    loop = Loop(pytest.fail)
    reader, writer = os.pipe()
    sent: list[bytes] = []
    source = InputPipe(loop, sent.append, 9, writer)
    sender = Sender(9)
    sender.write(b"a" * 200_000)
    sender.end()
    parser = Parser()
    parser.feed(preamble(NONCE))
    for encoded in sender.frames():
        for received in parser.feed(encoded):
            source.on_frame(received)
    taken = b""
    while len(taken) < 200_000:
        taken += os.read(reader, 65536)
        run(loop, 2)
    assert os.read(reader, 10) == b""
    for encoded in sent:
        for received in parser.feed(encoded):
            sender.ack(received.offset)
    assert sender.done
    assert source.finished
    os.close(reader)


def test_input_for_a_process_that_does_not_read_is_reset() -> None:
    loop = Loop(pytest.fail)
    reader, writer = os.pipe()
    sent: list[bytes] = []
    source = InputPipe(loop, sent.append, 9, writer)
    os.close(reader)
    source.on_frame(Frame(Kind.DATA, 9, b"hello", 0))
    assert source.finished
    assert sent == [frame(Kind.RESET, 9)]
