"""Which plug-in has set what: two that set the same are in conflict, and nobody can tell who is right."""

from __future__ import annotations

from orlop.errors import FailedPrecondition
from orlop.nri.api import nri_v1alpha1_pb2 as pb


class Claims:
    """What plug-ins have set of containers, while one request goes from plug-in to plug-in."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, int, str], str] = {}

    def claim(self, container: str, field: pb.Field.ValueType, plugin: str, key: str = "") -> None:
        """``plugin`` sets a field of a container, or the entry ``key`` of one.

        Raises FailedPrecondition naming both plug-ins when another one has.
        """
        other = self._owners.setdefault((container, field, key), plugin)
        if other != plugin:
            what = " ".join(part for part in (pb.Field.Name(field), key) if part)
            raise FailedPrecondition(
                f"the plug-ins {other} and {plugin} both set {what} of container {container[:12]}; "
                "a node can have only one of them, or the later one has to take it away first"
            )

    def clear(self, container: str, field: pb.Field.ValueType, key: str = "") -> None:
        """A later plug-in takes away what there was: whoever sets it now is its owner."""
        self._owners.pop((container, field, key), None)

    def message(self) -> pb.OwningPlugins:
        """For plug-ins that judge what others want."""
        found = pb.OwningPlugins()
        for (container, field, key), plugin in self._owners.items():
            owners = found.owners[container]
            if key:
                owners.compound[field].owners[key] = plugin
            else:
                owners.simple[field] = plugin
        return found
