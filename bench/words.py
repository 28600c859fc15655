"""What a benchmark says to people while it runs."""

from __future__ import annotations

import sys

import grpc


def say(message: str) -> None:
    """Progress, on standard error."""
    print(message, file=sys.stderr, flush=True)


def reason(error: Exception) -> str:
    """One line about why a system could not run."""
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
