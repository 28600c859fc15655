"""The host-guest protocol: how the daemon and the agent in a VM talk.

The idea, before the code. One byte pipe connects the daemon with the agent that
is PID 1 of a pod's VM. The pipe outlives the daemon: a daemon that is killed and started again
finds the same agent at the other end, perhaps in the middle of a frame. Everything here is
*sans-io*: bytes go in, values come out; whoever owns a socket or a device does the reading and
writing. Host and guest share this package, and it needs nothing but the standard library.

``framing``
    A fixed 20-byte header (length, offset, stream, kind) before every payload, and a *preamble*:
    a magic that occurs nowhere else in the stream, followed by a nonce. After connecting, the
    daemon sends the preamble with a fresh nonce and HELLO; the agent answers with the same nonce
    and its HELLO. Whatever came before the preamble, even half a frame, is dropped by the parser.
``codec``
    Frozen dataclasses to JSON and back. Every field's type, range and length is checked from its
    annotation; a value that does not fit is a :class:`~orlop.wire.codec.ProtocolError`.
``values``, ``messages``
    What is said: values (a container, a mount, statistics) and messages (requests with their
    replies, events).
``flow``
    Byte streams (stdin, stdout, stderr, forwarded ports) with a credit window per direction and
    acknowledgement by absolute offset. The sender keeps what was not acknowledged, so after a
    reconnect the receiver says from which offset it goes on and no byte is lost or doubled.

The conversation:

1. host: preamble(nonce), HELLO; guest: preamble(nonce), HELLO (with ``next_stream``).
2. host: REQUEST ``dump``, if it does not know the state; then REQUEST ``resume`` with the offset
   of each stream it wants. Streams that ``resume`` does not name are reset: an exec behind one is
   killed. Until ``resume`` the guest sends no DATA.
3. Requests and replies share an id (the header's stream field); replies come in any order.
   Events have stream 0. The host picks stream ids, each once in the life of a VM.
"""
