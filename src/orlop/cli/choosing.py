"""Which containers a command is for: some that are named, or all that ``orlop`` has made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from orlop.cli.problems import CliError
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.client.session import RUN_LABEL
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import NotFound


class Chosen(NamedTuple):
    """``names``, or ``everything`` of ours. That a name is nobody's is ``ignored``, or a mistake."""

    names: Sequence[str]
    everything: bool = False
    ignored: bool = False

    async def containers(
        self, client: CriClient, *, running: bool
    ) -> AsyncIterator[tuple[str, pb.Container]]:
        """Each, found when its turn comes, with what it is called here; of all, only those ``running``.

        Raises CliError, NotFound, InvalidArgument.
        """
        if bool(self.names) == self.everything:
            raise CliError("name containers, or write --all", exit_code=2)
        names = self.names or [one.id for one in await _own(client, running=running)]
        for name in names:
            try:
                yield name, await session.find_container(client, name)
            except NotFound:
                # One of all may go by itself meanwhile.
                if not (self.ignored or self.everything):
                    raise


async def _own(client: CriClient, *, running: bool) -> list[pb.Container]:
    """Containers in pods of ours: a kubelet's are not for a command to end by the dozen."""
    pods = (await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())).items
    ours = {one.id for one in pods if RUN_LABEL in one.labels}
    found = (await client.runtime.list_containers(pb.ListContainersRequest())).containers
    return [
        one
        for one in found
        if one.pod_sandbox_id in ours and (not running or one.state == pb.CONTAINER_RUNNING)
    ]
