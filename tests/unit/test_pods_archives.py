"""Which containers' files are packed."""

from __future__ import annotations

import pytest

from orlop.errors import FailedPrecondition, NotFound
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from orlop.sandbox.spec import IdMapping, NamespaceMode, Namespaces
from tests.unit.pods_double import pod_spec


@pytest.mark.parametrize("changed", [True, False])
async def test_files_of_users_of_its_own_and_of_what_has_ended_are_not(
    service: PodService, changed: bool
) -> None:
    ids = (IdMapping(host_id=100_000, container_id=0, length=65_536),)
    own = Namespaces(user=NamespaceMode.POD, uid_mappings=ids, gid_mappings=ids)
    pod_id = await service.run_pod(pod_spec(namespaces=own))
    container_id = await service.create_container(
        ContainerRequest(pod_id=pod_id, name="main", image="busybox")
    )
    with pytest.raises(FailedPrecondition, match="user namespace"):
        await anext(service.archive(container_id, changed=changed))
    await service.stop_pod(pod_id)
    with pytest.raises(FailedPrecondition, match="does not run"):
        await anext(service.archive(container_id, changed=changed))
    with pytest.raises(NotFound):
        await anext(service.archive("f" * 64, changed=changed))
