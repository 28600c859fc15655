"""What a container has changed, as its guest tells it: in pieces, each checked, as many as may be.

The archive of its files is handed on as it comes. Whoever reads it trusts it no more than the container.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from orlop.errors import FailedPrecondition, Unavailable
from orlop.host.tasks import beside
from orlop.linux.changes import Change, ChangeReader
from orlop.sandbox.vm.agent import AgentClient
from orlop.wire.hello import ARCHIVES, CHANGES
from orlop.wire.messages import Changes

_PATIENCE = 3600.0
"""Seconds until the guest has told all: whoever reads it may be slow, and gives up when he likes."""


async def told(agent: AgentClient, container_id: str) -> AsyncGenerator[Sequence[Change], None]:
    """Changes as they come. Raises FailedPrecondition, Unavailable."""
    _check(agent, CHANGES, "tell changes")
    reader = ChangeReader()
    try:
        request = Changes(id=container_id, stream=agent.new_stream())
        async with aclosing(_streamed(agent, request)) as pieces:
            async for piece in pieces:
                yield reader.take(piece)
        reader.end()
    except ValueError as error:
        raise Unavailable(f"the guest tells what cannot be changes: {error}") from error


async def packed(agent: AgentClient, container_id: str, *, changed: bool) -> AsyncGenerator[bytes, None]:
    """The archive of its files, or of those it has ``changed``. Raises FailedPrecondition, Unavailable."""
    _check(agent, ARCHIVES, "pack files")
    request = Changes(id=container_id, stream=agent.new_stream(), form="layer" if changed else "tree")
    async with aclosing(_streamed(agent, request)) as pieces:
        async for piece in pieces:
            yield piece


def _check(agent: AgentClient, feature: str, what: str) -> None:
    if feature not in agent.hello.features:
        raise FailedPrecondition(
            f"the guest is of an earlier version, which does not {what}; build the guest image anew and "
            "make the pod again"
        )


async def _streamed(agent: AgentClient, request: Changes) -> AsyncGenerator[bytes, None]:
    """What the guest sends on the request's stream until both have ended."""
    stream = agent.incoming(request.stream)
    try:
        async with beside(agent.call(request, _PATIENCE)) as answer:
            # A request that is refused has no stream whose end would tell.
            answer.add_done_callback(lambda _: stream.wake.set())
            while not stream.ended and not (answer.done() and answer.exception() is not None):
                stream.wake.clear()
                if chunk := stream.take():
                    stream.consumed(len(chunk))
                    yield chunk
                elif not stream.ended:
                    await stream.wake.wait()
            await answer
        stream.end_consumed()
    finally:
        stream.close()
