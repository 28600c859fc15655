"""What a container has changed, as its guest tells it: in pieces, each checked, as many as may be."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from orlop.errors import FailedPrecondition, Unavailable
from orlop.host.tasks import beside
from orlop.linux.changes import Change, ChangeReader
from orlop.sandbox.vm.agent import AgentClient
from orlop.wire.messages import CHANGES, Changes

_PATIENCE = 3600.0
"""Seconds until the guest has told all: whoever reads it may be slow, and gives up when he likes."""


async def told(agent: AgentClient, container_id: str) -> AsyncGenerator[Sequence[Change], None]:
    """Changes as they come. Raises FailedPrecondition, Unavailable."""
    if CHANGES not in agent.hello.features:
        raise FailedPrecondition(
            "the guest is of an earlier version, which does not tell changes; build the guest image anew and "
            "make the pod again"
        )
    stream = agent.incoming(agent.new_stream())
    reader = ChangeReader()
    try:
        request = Changes(id=container_id, stream=stream.stream)
        async with beside(agent.call(request, _PATIENCE)) as answer:
            # A request that is refused has no stream whose end would tell.
            answer.add_done_callback(lambda _: stream.wake.set())
            while not stream.ended and not (answer.done() and answer.exception() is not None):
                stream.wake.clear()
                if chunk := stream.take():
                    stream.consumed(len(chunk))
                    yield reader.take(chunk)
                elif not stream.ended:
                    await stream.wake.wait()
            await answer
        stream.end_consumed()
        reader.end()
    except ValueError as error:
        raise Unavailable(f"the guest tells what cannot be changes: {error}") from error
    finally:
        stream.close()
