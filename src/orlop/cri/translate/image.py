"""Images, as CRI's messages."""

from __future__ import annotations

from orlop.cri import validate
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.images.model import Image, RegistryAuth, health


def reference(spec: pb.ImageSpec) -> str:
    """The image meant. Raises InvalidArgument."""
    return validate.line(validate.text(spec.image, "image.image", required=True), "image.image")


_SHOWN_USER = 256


def credentials(auth: pb.AuthConfig) -> RegistryAuth:
    """What to show to the registry."""
    return RegistryAuth(
        username=validate.text(auth.username, "auth.username"),
        password=validate.text(auth.password, "auth.password"),
        auth=validate.text(auth.auth, "auth.auth"),
        server_address=validate.text(auth.server_address, "auth.server_address"),
        identity_token=validate.text(auth.identity_token, "auth.identity_token"),
        registry_token=validate.text(auth.registry_token, "auth.registry_token"),
    )


def image(value: Image) -> pb.Image:
    """An image as lists and status show it."""
    message = pb.Image(
        id=value.id,
        repo_tags=value.repo_tags,
        repo_digests=value.repo_digests,
        size=value.size,
        spec=pb.ImageSpec(image=value.id),
        pinned=value.pinned,
    )
    user = value.config.user.partition(":")[0]
    if user.isdecimal() and len(user) < 19:
        message.uid.value = int(user)
    else:
        # Lists go to clients that take 16 MiB, and this is the one word of an image's author in them.
        message.username = user[:_SHOWN_USER]
    return message


def info(value: Image) -> dict[str, object]:
    """For verbose status: the image's configuration in the shape and words of the OCI image specification."""
    config = value.config
    process: dict[str, object] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": config.env,
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "Volumes": {volume: {} for volume in config.volumes},
        "WorkingDir": config.working_dir,
        "Labels": config.labels,
        "StopSignal": config.stop_signal,
        "Healthcheck": health(config.healthcheck),
    }
    return {
        "imageSpec": {
            "created": config.created,
            "architecture": config.architecture,
            "os": config.os,
            "config": {name: found for name, found in process.items() if found},
        },
        "layers": len(value.layers),
    }
