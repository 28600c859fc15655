"""Credit and resumption: nothing lost, nothing doubled, nothing unbounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orlop.wire.flow import Receiver, Sender
from orlop.wire.framing import Kind, Parser, ProtocolError, preamble

WINDOW = 64


class Stream(RuleBasedStateMachine):
    """A sender and a receiver over a pipe that breaks now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.sender = Sender(5, WINDOW)
        self.receiver = Receiver(5, WINDOW)
        self.sent = b""
        self.buffered = b""
        self.got = b""
        self.pipe = b""
        self.new_pipe()

    def new_pipe(self) -> None:
        self.pipe = b""
        self.parser = Parser()
        self.parser.feed(preamble(b"0" * 16))

    @precondition(lambda self: self.sender.room > 0)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        chunk = data.draw(st.binary(min_size=1, max_size=self.sender.room))
        self.sender.write(chunk)
        self.sent += chunk

    @rule()
    def end(self) -> None:
        self.sender.end()

    @rule()
    def send(self) -> None:
        self.pipe += b"".join(self.sender.frames())

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        cut = data.draw(st.integers(0, len(self.pipe)))
        chunk, self.pipe = self.pipe[:cut], self.pipe[cut:]
        for item in self.parser.feed(chunk):
            if item.kind is Kind.DATA:
                self.buffered += self.receiver.data(item.offset, item.payload)
            else:
                self.receiver.end(item.offset)

    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.buffered)))
        self.got += self.buffered[:count]
        self.buffered = self.buffered[count:]
        self.acknowledge(self.receiver.consumed(count))
        if self.receiver.ended and not self.buffered:
            self.acknowledge(self.receiver.end_consumed())

    def acknowledge(self, encoded: bytes) -> None:
        if encoded:
            parser = Parser()
            (_, item) = parser.feed(preamble(b"0" * 16) + encoded)
            self.sender.ack(item.offset)

    @rule()
    def reconnect(self) -> None:
        self.sender.pause()
        assert list(self.sender.frames()) == []
        self.new_pipe()
        offset = self.receiver.offset
        if offset <= self.receiver.received:
            # A daemon that was started again knows no more than where to go on.
            self.receiver = Receiver(5, WINDOW, offset=offset)
            self.buffered = b""
        self.sender.resume(offset)

    @invariant()
    def nothing_lost_or_doubled(self) -> None:
        assert self.sent.startswith(self.got + self.buffered)
        assert self.sender.written - self.sender.acked <= WINDOW
        if self.sender.done:
            assert self.got == self.sent


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=150, stateful_step_count=40)


def test_the_window_is_never_overrun() -> None:
    receiver = Receiver(1, WINDOW)
    with pytest.raises(ProtocolError, match="window"):
        receiver.data(0, bytes(WINDOW + 1))
    with pytest.raises(ProtocolError, match="gap"):
        receiver.data(1, b"x")


def test_an_end_must_match_what_came() -> None:
    receiver = Receiver(1, WINDOW)
    receiver.data(0, b"abc")
    with pytest.raises(ProtocolError):
        receiver.end(4)
    assert receiver.end(3) is True
    assert receiver.end(3) is False
    with pytest.raises(ProtocolError):
        receiver.data(3, b"d")


@given(st.integers(0, 100))
def test_only_what_was_sent_can_be_acknowledged(offset: int) -> None:
    sender = Sender(1, WINDOW)
    sender.write(b"hello")
    list(sender.frames())
    if offset <= 5:
        sender.ack(offset)
        assert sender.acked == offset
    else:
        with pytest.raises(ProtocolError):
            sender.ack(offset)


def test_resume_outside_of_what_is_kept() -> None:
    sender = Sender(1, WINDOW)
    sender.write(b"hello")
    list(sender.frames())
    sender.ack(3)
    with pytest.raises(ProtocolError):
        sender.resume(2)
    with pytest.raises(ProtocolError):
        sender.resume(6)
    sender.resume(5)
