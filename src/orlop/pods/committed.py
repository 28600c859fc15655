"""What an image that is made of a container runs: what the container ran, as other runtimes have it."""

from __future__ import annotations

import msgspec

from orlop.errors import FailedPrecondition
from orlop.images.model import ImageConfigOci
from orlop.pods.names import GIVEN, OWN
from orlop.pods.records import ContainerRecord

_OURS = frozenset({OWN, GIVEN})
_KUBELETS = "io.kubernetes."


def config(record: ContainerRecord, base: ImageConfigOci) -> ImageConfigOci:
    """The configuration of an image of the container ``record``, whose own image has ``base``.

    Raises FailedPrecondition for a variable that an image cannot have.
    """
    spec, security = record.spec, record.spec.security
    first = len(base.entrypoint)
    as_before = bool(first) and spec.args[:first] == base.entrypoint
    user = security.user + (f":{security.group}" if security.user and security.group else "")
    labels = {
        key: value
        for key, value in record.labels.items()
        if key not in _OURS and not key.startswith(_KUBELETS)
    }
    return msgspec.structs.replace(
        base,
        entrypoint=base.entrypoint if as_before else (),
        cmd=spec.args[first:] if as_before else spec.args,
        env=tuple(f"{key}={_text(key, value)}" for key, value in spec.env),
        working_dir=spec.cwd,
        user=user or base.user,
        labels={**base.labels, **labels},
        stop_signal=record.stop_signal,
    )


def _text(key: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise FailedPrecondition(
            f"the variable {key[:80]} of the container is no UTF-8, which an image must have: unset it"
        ) from None
