"""Services whose code is loaded when the first of their calls comes: most daemons never need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    Handler = grpc.GenericRpcHandler[bytes, bytes]
else:  # it takes no parameters at run time
    Handler = grpc.GenericRpcHandler


class Deferred(Handler):
    """The services of the protobuf package ``package``, which ``make`` makes."""

    def __init__(self, package: str, make: Callable[[], Sequence[Handler]]) -> None:
        self._prefix = f"/{package}."
        self._make = make
        self._made: Sequence[Handler] | None = None

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """What serves a call; None for one of another package."""
        if not handler_call_details.method.startswith(self._prefix):
            return None
        if self._made is None:
            self._made = self._make()
        found = (one.service(handler_call_details) for one in self._made)
        return next((one for one in found if one is not None), None)
