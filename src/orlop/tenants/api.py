"""The one door to the API server: objects are the API's own documents, errors are Orlop's."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.types import PatchType

from orlop.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from orlop.tenants import names
from orlop.value import Value

Document = dict[str, Any]

CALL_TIMEOUT: Final = 30.0
LARGEST_ANSWER: Final = 64 << 20
"""Bytes of an answer that is no object of the API: a kubelet's about all its pods has some megabytes."""
PAGE: Final = 250
"""Objects in one answer to a list: a pod's document is tens of kilobytes in memory."""


class Resource(Value, frozen=True):
    """A kind of objects, as the API server finds it.

    ``only`` is the namespace and name of the one object that is meant, where a kind as a whole is not for us.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = False
    only: tuple[str, str] | None = None

    @property
    def place(self) -> str | None:
        """The namespace to look into, "*" for all, None for what has none."""
        if self.only:
            return self.only[0]
        return "*" if self.namespaced else None


TENANTS = Resource(group=names.GROUP, version=names.VERSION, kind="Tenant", plural="tenants")
NETWORKS = Resource(group=names.GROUP, version=names.VERSION, kind="Network", plural="networks")
FLOATING_ADDRESSES = Resource(
    group=names.GROUP,
    version=names.VERSION,
    kind="FloatingAddress",
    plural="floatingaddresses",
    namespaced=True,
)
POOLS = Resource(group=names.GROUP, version=names.VERSION, kind="AddressPool", plural="addresspools")
NODES = Resource(group="", version="v1", kind="Node", plural="nodes")
PODS = Resource(group="", version="v1", kind="Pod", plural="pods", namespaced=True)
SERVICES = Resource(group="", version="v1", kind="Service", plural="services", namespaced=True)
SLICES = Resource(
    group="discovery.k8s.io", version="v1", kind="EndpointSlice", plural="endpointslices", namespaced=True
)
NAMESPACES = Resource(group="", version="v1", kind="Namespace", plural="namespaces")
ACCOUNTS = Resource(group="", version="v1", kind="ServiceAccount", plural="serviceaccounts", namespaced=True)
CONFIG_MAPS = Resource(group="", version="v1", kind="ConfigMap", plural="configmaps", namespaced=True)
ADDRESS_BOOK = msgspec.structs.replace(CONFIG_MAPS, only=(names.SYSTEM, names.ADDRESS_BOOK))
QUOTAS = Resource(group="", version="v1", kind="ResourceQuota", plural="resourcequotas", namespaced=True)
LIMITS = Resource(group="", version="v1", kind="LimitRange", plural="limitranges", namespaced=True)
POLICIES = Resource(
    group="networking.k8s.io", version="v1", kind="NetworkPolicy", plural="networkpolicies", namespaced=True
)
_RBAC = "rbac.authorization.k8s.io"
BINDINGS = Resource(group=_RBAC, version="v1", kind="RoleBinding", plural="rolebindings", namespaced=True)
CLUSTER_ROLES = Resource(group=_RBAC, version="v1", kind="ClusterRole", plural="clusterroles")
CLUSTER_BINDINGS = Resource(
    group=_RBAC, version="v1", kind="ClusterRoleBinding", plural="clusterrolebindings"
)
RUNTIMES = Resource(group="node.k8s.io", version="v1", kind="RuntimeClass", plural="runtimeclasses")
LEASES = Resource(group="coordination.k8s.io", version="v1", kind="Lease", plural="leases", namespaced=True)
_ADMISSION = "admissionregistration.k8s.io"
GUARDS = Resource(
    group=_ADMISSION, version="v1", kind="ValidatingAdmissionPolicy", plural="validatingadmissionpolicies"
)
GUARD_BINDINGS = Resource(
    group=_ADMISSION,
    version="v1",
    kind="ValidatingAdmissionPolicyBinding",
    plural="validatingadmissionpolicybindings",
)

OF_A_NAMESPACE = (QUOTAS, LIMITS, POLICIES, BINDINGS)
"""What the operator makes in a tenant's namespaces."""
ALL = (TENANTS, NETWORKS, NAMESPACES, ACCOUNTS, *OF_A_NAMESPACE, CLUSTER_ROLES, CLUSTER_BINDINGS)
OF_ADDRESSES = (FLOATING_ADDRESSES, POOLS, SERVICES)
"""Where the operator says which address something has."""
BY_KIND = {
    one.kind: one for one in (*ALL, *OF_ADDRESSES, CONFIG_MAPS, LEASES, RUNTIMES, GUARDS, GUARD_BINDINGS)
}

_ERRORS: Final[Mapping[int, type[OrlopError]]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Aborted,
    410: Aborted,
    422: InvalidArgument,
}


@functools.cache
def _type_of(resource: Resource) -> Any:
    if resource.only:
        return _type_of(msgspec.structs.replace(resource, only=None))
    make = create_namespaced_resource if resource.namespaced else create_global_resource
    return make(resource.group, resource.version, resource.kind, resource.plural)


def _explain(error: ApiError) -> OrlopError:
    status = error.status
    code, message = status.code or 0, str(status.message or "it gave no reason")
    if status.reason == "AlreadyExists":
        return AlreadyExists(f"the API server says: {message}")
    return _ERRORS.get(code, Unavailable)(f"the API server says: {message}")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        raise _explain(error) from error
    except httpx2.HTTPStatusError as error:
        kind = _ERRORS.get(error.response.status_code, Unavailable)
        raise kind(f"the API server says: {error}") from error
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the API server's answer breaks off: {error}") from error
    except httpx2.HTTPError as error:
        said = str(error) or type(error).__name__
        raise Unavailable(f"the API server does not answer: {said}") from error
    except ConfigError as error:
        raise FailedPrecondition(f"the kubeconfig does not let anybody in: {error}") from error


def identity(document: Mapping[str, Any]) -> tuple[str, str, str]:
    """Kind, namespace ("" for what has none) and name of an object."""
    about = document["metadata"]
    return document["kind"], about.get("namespace", ""), about["name"]


class Api:
    """Calls to one API server. Open it with :func:`connect`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def config(self) -> Any:
        """Server, certificate authority and user, as the kubeconfig has them."""
        return self._client.config

    async def find(self, resource: Resource, name: str, namespace: str = "") -> Document | None:
        """An object, or None if it is not there."""
        try:
            with _explained():
                found: Document = await self._client.get(_type_of(resource), name, **_place(namespace))
        except NotFound:
            return None
        return found

    async def list(
        self, resource: Resource, *, labels: Mapping[str, str] | None = None, namespace: str = "*"
    ) -> list[Document]:
        """The objects of a kind that have these labels, of all namespaces."""
        place = {"namespace": namespace} if resource.namespaced else {}
        pages = self._client.list(_type_of(resource), labels=labels, chunk_size=PAGE, **place)
        with _explained():
            found: list[Document] = [
                {"apiVersion": _version(resource), "kind": resource.kind, **one} async for one in pages
            ]
        return found

    async def each(self, resource: Resource, found: Callable[[Document], None]) -> str:
        """Tell of all objects of a kind, page by page, so that they need not be in memory together.

        Returns the version of that list, which :meth:`since` goes on from. Raises Aborted when it took so
        long that it has to be read again.
        """
        place = {"namespace": resource.place} if resource.place else {}
        fields = {"metadata.name": resource.only[1]} if resource.only else None
        pages = self._client.list(_type_of(resource), fields=fields, chunk_size=PAGE, **place)
        with _explained():
            async for one in pages:
                found(one)
        version: str = pages.resourceVersion
        return version

    async def since(
        self, resource: Resource, version: str
    ) -> AsyncGenerator[tuple[bool | None, Document], None]:
        """What becomes of a kind after a version: whether an object is there still, and the object.

        With None come documents that say nothing but how far the server is. Raises Aborted when it does not
        know any more what came after that version.
        """
        inner = self._client._client
        params = {"resourceVersion": version, "allowWatchBookmarks": "true"}
        if resource.only:
            params["fieldSelector"] = f"metadata.name={resource.only[1]}"
        request = inner.prepare_request(
            "list",
            _type_of(resource),
            namespace=resource.place,
            watch=True,
            params=params,
        )
        with _explained():
            async with contextlib.aclosing(inner.watch(request)) as news:
                async for kind, one in news:
                    yield None if kind == "BOOKMARK" else kind != "DELETED", one

    async def create(self, document: Document) -> Document:
        """Make an object. Raises AlreadyExists when one of that name is there."""
        kind, namespace, name = identity(document)
        body = _type_of(BY_KIND[kind])(document)
        with _explained():
            made: Document = await self._client.create(body, name, **_place(namespace))
        return made

    async def replace(self, document: Document) -> Document:
        """Write an object that was read before. Raises Aborted when it has changed since."""
        body = _type_of(BY_KIND[document["kind"]])(document)
        with _explained():
            made: Document = await self._client.replace(body, **_place(identity(document)[1]))
        return made

    async def apply(self, document: Document, *, status: bool = False) -> Document:
        """Make an object be so, as far as the document goes (server-side apply); other fields stay.

        With a ``uid`` in its metadata another object of that name is left alone: raises Aborted.
        """
        kind, namespace, name = identity(document)
        target = _type_of(BY_KIND[kind])
        with _explained():
            made: Document = await self._client.patch(
                target.Status if status else target,
                name,
                document,
                patch_type=PatchType.APPLY,
                field_manager=names.OPERATOR,
                force=True,
                **_place(namespace),
            )
        return made

    async def merge(
        self, resource: Resource, name: str, change: Document, *, namespace: str = "", status: bool = False
    ) -> None:
        """Change some fields of an object (JSON merge patch).

        With a ``resourceVersion`` in its metadata one that has changed since is left alone: raises Aborted.
        """
        target = _type_of(resource)
        with _explained():
            await self._client.patch(
                target.Status if status else target,
                name,
                change,
                patch_type=PatchType.MERGE,
                **_place(namespace),
            )

    async def delete(self, document: Mapping[str, Any]) -> None:
        """Ask for the end of exactly this object; that it is gone, or another has its name, is no error."""
        kind, namespace, name = identity(document)
        # The library's own call takes no preconditions.
        inner = self._client._client
        request = inner.prepare_request("delete", _type_of(BY_KIND[kind]), None, name, namespace or None)
        request.data = {
            "preconditions": {"uid": document["metadata"]["uid"]},
            "propagationPolicy": "Background",
        }
        with contextlib.suppress(NotFound, Aborted), _explained():
            answer = await inner.send(inner.build_adapter_request(request))
            inner.handle_response("delete", answer, request)

    async def token(self, account: str, namespace: str, seconds: int) -> str:
        """A token of a service account, valid for so long; the server may shorten it."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        inner = self._client._client
        request = inner.prepare_request("get", _type_of(ACCOUNTS), None, account, namespace)
        request.method, request.data, request.url = "POST", body, f"{request.url}/token"
        with _explained():
            answer = await inner.send(inner.build_adapter_request(request))
            inner.raise_for_status(answer)
        made: Document = answer.json()
        return str(made["status"]["token"])

    async def read(self, path: str, *, largest: int = LARGEST_ANSWER) -> bytes:
        """What the server, or a node behind it, answers to a GET of a path.

        Raises OrlopError: ResourceExhausted when the answer has more than ``largest`` bytes.
        """
        inner, data = self._client._client, bytearray()
        with _explained():
            answer = await inner.send(inner._client.build_request("GET", path), stream=True)
            try:
                answer.raise_for_status()
                async for chunk in answer.aiter_bytes():
                    data += chunk
                    if len(data) > largest:
                        raise ResourceExhausted(f"{path} answers more than {largest} bytes")
            finally:
                await answer.aclose()
        return bytes(data)

    async def changes(
        self, resource: Resource, *, labels: Mapping[str, Any] | None = None, namespace: str = "*"
    ) -> AsyncIterator[Document]:
        """Each object that is there, and then each that changes or goes.

        A connection whose other end is gone says nothing at all: begin anew from time to time.
        """
        async with contextlib.aclosing(self.news(resource, labels=labels, namespace=namespace)) as news:
            async for _, one in news:
                yield one

    async def news(
        self, resource: Resource, *, labels: Mapping[str, Any] | None = None, namespace: str = "*"
    ) -> AsyncGenerator[tuple[bool, Document], None]:
        """As :meth:`changes`, with whether the object is there still."""
        place = {"namespace": namespace} if resource.namespaced else {}
        # From whatever the server has in memory: a quiet kind's may be older than what was written last,
        # and waiting for it to be as new can take longer than the server lets us.
        watch = self._client.watch(_type_of(resource), labels=labels, resource_version="0", **place)
        with _explained():
            async with contextlib.aclosing(watch):
                async for kind, one in watch:
                    yield kind != "DELETED", one


def _version(resource: Resource) -> str:
    return f"{resource.group}/{resource.version}" if resource.group else resource.version


def _place(namespace: str) -> dict[str, str]:
    return {"namespace": namespace} if namespace else {}


@contextlib.asynccontextmanager
async def connect(kubeconfig: Path | None = None, context: str | None = None) -> AsyncIterator[Api]:
    """A connection as kubectl has it: a file, ``$KUBECONFIG``, or the service account of a pod.

    Raises FailedPrecondition when none of them says how.
    """
    try:
        found = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        client = AsyncClient(found.get(context), timeout=httpx2.Timeout(CALL_TIMEOUT))
    except (ConfigError, OSError, KeyError, ValueError) as error:
        raise FailedPrecondition(f"no way to the API server: {error}; see --kubeconfig") from error
    try:
        yield Api(client)
    finally:
        await client.close()
