"""The JSON documents of a registry: indexes, manifests and image configurations.

OCI image-spec 1.1 and the Docker schema 2 forms that preceded it. All of it comes from outside:
sizes are bounded by the reader, types are checked here, digests by the caller.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unimplemented
from orlop.images.model import HealthCheck, ImageConfigOci, health
from orlop.images.reference import is_digest
from orlop.linux import architecture
from orlop.value import UNREADABLE

_T = TypeVar("_T")

MAX_DOCUMENT = 8 << 20
MAX_LAYERS = 120
_MAX_TEST = 32 << 10

_Duration = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)


class Platform(msgspec.Struct, frozen=True):
    """What an image is made for."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A pointer to a blob or manifest."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None


class Manifest(msgspec.Struct, frozen=True):
    """The manifest of one image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class _ImageDocument(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    manifests: tuple[Descriptor, ...] | None = None
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] | None = None


class _Process(msgspec.Struct, frozen=True, rename="pascal"):
    user: str | None = None
    exposed_ports: dict[str, msgspec.Raw] | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | str | None = None
    cmd: tuple[str, ...] | str | None = None
    volumes: dict[str, msgspec.Raw] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    healthcheck: msgspec.Raw = msgspec.Raw()


class _Health(msgspec.Struct, frozen=True, rename="pascal"):
    test: Annotated[tuple[str, ...], msgspec.Meta(max_length=256)] | None = None
    interval: _Duration | None = None
    timeout: _Duration | None = None
    start_period: _Duration | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: tuple[str, ...] | None = None


class _HistoryEntry(msgspec.Struct, frozen=True):
    comment: str | None = None


class _Config(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    history: tuple[_HistoryEntry, ...] | None = None
    config: _Process | None = None
    rootfs: _RootFs | None = None


def digest_of(data: bytes) -> str:
    """The digest of a document."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def own_platform() -> Platform:
    """What images must be made for to run here."""
    try:
        name = architecture.own().debian
    except NotImplementedError:
        name = platform.machine()
    return Platform(architecture=name, os="linux")


def choose(data: bytes, name: str, own: Platform) -> Manifest | Descriptor:
    """The manifest in ``data``; or, if it is an index, the descriptor of the manifest for ``own``.

    Raises FailedPrecondition when the index has none for this platform, or when it is no image.
    """
    document = _decode(data, _ImageDocument, f"the manifest of {name}")
    if document.manifests is not None or document.media_type in _INDEXES:
        return _pick(document.manifests or (), name, own)
    if document.schema_version != 2 or document.config is None or document.layers is None:
        raise FailedPrecondition(
            f"image {name} has a manifest of an old or unknown kind (schema {document.schema_version}); "
            "push it again with a current tool"
        )
    _check_manifest(document.config, document.layers, name)
    return Manifest(document.config, document.layers)


def _pick(manifests: Sequence[Descriptor], name: str, own: Platform) -> Descriptor:
    variants = {known.debian: known.variants for known in architecture.ALL}
    order = variants.get(own.architecture, ("",))
    fitting: list[tuple[int, int, Descriptor]] = []
    for descriptor in manifests:
        found = descriptor.platform
        if found is None or found.os != own.os or found.architecture != own.architecture:
            continue
        if found.variant in order:
            fitting.append((order.index(found.variant), len(fitting), descriptor))
    if not fitting:
        present = sorted(
            {str(d.platform) for d in manifests if d.platform is not None and d.platform.os != "unknown"}
        )
        raise FailedPrecondition(
            f"image {name} is not made for this machine, {own}; there is {', '.join(present) or 'nothing'}"
        )
    chosen = min(fitting)[2]
    _check_descriptor(chosen, name)
    return chosen


def _check_manifest(config: Descriptor, layers: Sequence[Descriptor], name: str) -> None:
    if config.media_type and config.media_type not in _CONFIGS:
        raise FailedPrecondition(f"{name} is not a container image but an artifact ({config.media_type})")
    if len(layers) > MAX_LAYERS:
        raise ResourceExhausted(f"image {name} has {len(layers)} layers; at most {MAX_LAYERS} are supported")
    for descriptor in (config, *layers):
        _check_descriptor(descriptor, name)
        if "+encrypted" in descriptor.media_type:
            raise Unimplemented(f"image {name} has encrypted layers, which cannot be read")


def _check_descriptor(descriptor: Descriptor, name: str) -> None:
    if not is_digest(descriptor.digest):
        raise FailedPrecondition(f"image {name} names a blob by {descriptor.digest[:80]!r}, not by sha256")
    if descriptor.size < 0:
        raise DataLoss(f"the manifest of {name} names a blob of negative size")


def read_config(data: bytes, name: str, own: Platform, layers: int) -> tuple[ImageConfigOci, tuple[str, ...]]:
    """The configuration of an image and the digests of its unpacked layers, bottom first.

    Raises FailedPrecondition for another platform, DataLoss when it does not fit the manifest.
    """
    config = _decode(data, _Config, f"the configuration of {name}")
    made_for = Platform(architecture=config.architecture, os=config.os, variant=config.variant or "")
    if (config.architecture, config.os) != (own.architecture, own.os):
        raise FailedPrecondition(f"image {name} is made for {made_for}, this machine is {own}")
    diff_ids = (config.rootfs.diff_ids if config.rootfs is not None else None) or ()
    if len(diff_ids) != layers or not all(is_digest(diff_id) for diff_id in diff_ids):
        raise DataLoss(f"the configuration of {name} does not fit its manifest: the layers differ")
    process = config.config or _Process()
    return (
        ImageConfigOci(
            entrypoint=_words(process.entrypoint),
            cmd=_words(process.cmd),
            env=process.env or (),
            working_dir=process.working_dir or "",
            user=process.user or "",
            stop_signal=process.stop_signal or "",
            healthcheck=_health(process.healthcheck),
            volumes=tuple(sorted(process.volumes or {})),
            labels=process.labels or {},
            exposed_ports=tuple(sorted(process.exposed_ports or {})),
            architecture=config.architecture,
            os=config.os,
            created=config.created or "",
            author=config.author or "",
            comment=(config.history[-1].comment or "") if config.history else "",
        ),
        diff_ids,
    )


def write_config(known: ImageConfigOci, diff_ids: Sequence[str]) -> bytes:
    """What :func:`read_config` reads. Of the steps that made the image, the last comment is kept."""
    run = {
        "User": known.user,
        "Env": known.env,
        "Entrypoint": known.entrypoint,
        "Cmd": known.cmd,
        "WorkingDir": known.working_dir,
        "Labels": known.labels,
        "StopSignal": known.stop_signal,
        "Healthcheck": health(known.healthcheck),
        "Volumes": {key: {} for key in known.volumes},
        "ExposedPorts": {key: {} for key in known.exposed_ports},
    }
    document: dict[str, Any] = {
        "created": known.created,
        "author": known.author,
        "architecture": known.architecture,
        "os": known.os,
    }
    if known.comment and diff_ids:
        # One step for each layer, or readers take it for damaged.
        document["history"] = [{}] * (len(diff_ids) - 1) + [{"comment": known.comment}]
    return msgspec.json.encode(
        {
            **{key: value for key, value in document.items() if value},
            "config": {key: value for key, value in run.items() if value},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )


def changed(known: ImageConfigOci, settings: bytes) -> ImageConfigOci:
    """``known`` with what ``settings``, the ``config`` of an image configuration in JSON, says instead.

    Variables, labels, ports and volumes are added to those there are. Raises InvalidArgument.
    """
    try:
        wish = msgspec.json.decode(settings or b"{}", type=_Process)
    except UNREADABLE as error:
        raise InvalidArgument(f"the settings of the image cannot be understood: {error}") from error
    variables = {text.partition("=")[0]: text for text in (*known.env, *(wish.env or ()))}
    return msgspec.structs.replace(
        known,
        user=known.user if wish.user is None else wish.user,
        env=tuple(variables.values()),
        entrypoint=known.entrypoint if wish.entrypoint is None else _words(wish.entrypoint),
        cmd=known.cmd if wish.cmd is None else _words(wish.cmd),
        working_dir=wish.working_dir or known.working_dir,
        stop_signal=wish.stop_signal or known.stop_signal,
        healthcheck=_health(wish.healthcheck) or known.healthcheck,
        labels={**known.labels, **(wish.labels or {})},
        volumes=tuple(sorted({*known.volumes, *(wish.volumes or {})})),
        exposed_ports=tuple(sorted({*known.exposed_ports, *(wish.exposed_ports or {})})),
    )


def _words(value: tuple[str, ...] | str | None) -> tuple[str, ...]:
    """Very old builders wrote a plain string where a list belongs."""
    return (value,) if isinstance(value, str) else value or ()


def _health(said: bytes) -> HealthCheck | None:
    """An image's health check. OCI does not know it, so that one which nobody understands spoils no image."""
    if not said:
        return None
    try:
        found = msgspec.json.decode(said, type=_Health | None)
    except UNREADABLE:
        return None
    if found is None or not found.test or sum(map(len, found.test)) > _MAX_TEST:
        return None
    return HealthCheck(
        test=found.test,
        interval=found.interval or 0,
        timeout=found.timeout or 0,
        start_period=found.start_period or 0,
        retries=found.retries or 0,
    )


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise DataLoss(f"{what} is not a valid document: {error}") from error


def nested(name: str) -> FailedPrecondition:
    """The error for an index that leads to a further index."""
    return FailedPrecondition(f"image {name} is an index of indexes, which is not supported")
