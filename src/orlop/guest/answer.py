"""The reply to a request, which may come long after the request was taken up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orlop.wire import messages
from orlop.wire.messages import Refused


class Answer:
    """Where the reply to one request goes; the first of :meth:`ok` and :meth:`refuse` counts."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send: Callable[[bytes], None] | None = send

    def ok(self, reply: Any) -> None:
        """It was done."""
        self._once(messages.pack_reply(reply))

    def refuse(self, refused: Refused) -> None:
        """It was not."""
        self._once(messages.pack_failure(refused.code, str(refused)))

    def _once(self, payload: bytes) -> None:
        send, self._send = self._send, None
        if send is not None:
            send(payload)
