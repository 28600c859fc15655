"""Requests about containers, as values of ``pods``."""

from __future__ import annotations

from orlop.cri import validate
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate import common, signals
from orlop.errors import InvalidArgument
from orlop.pods.records import ContainerFilter, ContainerPhase
from orlop.pods.requests import ContainerRequest, MountRequest, SecurityRequest
from orlop.sandbox.spec import MOUNT_OPTIONS, Device, MountOption, Propagation

_PROPAGATIONS = {
    pb.PROPAGATION_PRIVATE: Propagation.PRIVATE,
    pb.PROPAGATION_HOST_TO_CONTAINER: Propagation.HOST_TO_CONTAINER,
    pb.PROPAGATION_BIDIRECTIONAL: Propagation.BIDIRECTIONAL,
}
PROPAGATION_NUMBERS = {value: number for number, value in _PROPAGATIONS.items()}
_POLICIES = {pb.Merge: False, pb.Strict: True}
_PHASES = {
    pb.CONTAINER_CREATED: ContainerPhase.CREATED,
    pb.CONTAINER_RUNNING: ContainerPhase.RUNNING,
    pb.CONTAINER_EXITED: ContainerPhase.EXITED,
    pb.CONTAINER_UNKNOWN: ContainerPhase.UNKNOWN,
}
PHASE_NUMBERS = {phase: number for number, phase in _PHASES.items()}


def container_request(pod_id: str, config: pb.ContainerConfig) -> ContainerRequest:
    """The container asked for, shapes checked. Raises InvalidArgument."""
    if not config.HasField("metadata"):
        raise InvalidArgument("config.metadata is missing")
    common.no_windows(config)
    linux = config.linux
    return ContainerRequest(
        pod_id=validate.identifier(pod_id, "pod_sandbox_id"),
        name=validate.name(config.metadata.name, "config.metadata.name"),
        attempt=config.metadata.attempt,
        image=validate.text(config.image.image, "config.image.image", limit=validate.MAX_PATH, required=True),
        user_image=validate.text(config.image.user_specified_image, "config.image.user_specified_image"),
        command=validate.command(config.command, "config.command"),
        args=validate.command(config.args, "config.args"),
        env=_environment(config),
        cwd=validate.path(config.working_dir, "config.working_dir", required=False),
        mounts=tuple(_mount(item, index) for index, item in enumerate(_listed(config))),
        devices=_devices(config),
        cdi_devices=tuple(
            validate.word(item.name, "config.CDI_devices.name")
            for item in validate.items(config.CDI_devices, "config.CDI_devices", limit=256)
        ),
        tty=config.tty,
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        log_path=validate.path(config.log_path, "config.log_path", required=False),
        labels=validate.pairs(config.labels, "config.labels"),
        annotations=validate.pairs(config.annotations, "config.annotations"),
        resources=common.resources(linux.resources, "config.linux.resources"),
        security=_security(linux.security_context, "config.linux.security_context"),
        namespaces=common.namespaces(
            linux.security_context.namespace_options, "config.linux.security_context.namespace_options"
        ),
        stop_signal=signals.name_of(config.stop_signal, "config.stop_signal"),
    )


def _environment(config: pb.ContainerConfig) -> tuple[tuple[str, bytes], ...]:
    result = []
    size = 0
    for index, item in enumerate(validate.items(config.envs, "config.envs")):
        where = f"config.envs[{index}]"
        validate.text(item.key, f"{where}.key", required=True)
        if "=" in item.key:
            raise InvalidArgument(f"{where}.key {validate.excerpt(item.key)} contains '='")
        if b"\0" in item.value:
            raise InvalidArgument(f"{where}.value contains a NUL byte")
        length = len(item.key.encode()) + len(item.value) + 1
        if length > validate.MAX_ARGUMENT_BYTES:
            raise InvalidArgument(f"{where} is longer than {validate.MAX_ARGUMENT_BYTES} bytes")
        size += length
        result.append((item.key, item.value))
    if size > validate.MAX_COMMAND_BYTES:
        raise InvalidArgument(
            f"config.envs is {size} bytes large; at most {validate.MAX_COMMAND_BYTES} are allowed"
        )
    return tuple(result)


def _listed(config: pb.ContainerConfig) -> tuple[pb.Mount, ...]:
    return validate.items(config.mounts, "config.mounts", limit=1024)


def _mount(item: pb.Mount, index: int) -> MountRequest:
    where = f"config.mounts[{index}]"
    propagation = validate.pick(_PROPAGATIONS, item.propagation, f"{where}.propagation")
    if item.recursive_read_only and not item.readonly:
        raise InvalidArgument(f"{where}.recursive_read_only needs readonly")
    if item.recursive_read_only and propagation is not Propagation.PRIVATE:
        raise InvalidArgument(f"{where}.recursive_read_only needs PROPAGATION_PRIVATE")
    image = ""
    if item.HasField("image"):
        image = validate.text(item.image.image, f"{where}.image.image", limit=validate.MAX_PATH)
    if image and item.host_path:
        raise InvalidArgument(f"{where} has both a host_path and an image")
    if image and not item.readonly:
        raise InvalidArgument(f"{where}: an image can only be mounted with readonly")
    if not image:
        validate.path(item.host_path, f"{where}.host_path")
    return MountRequest(
        container_path=validate.path(item.container_path, f"{where}.container_path"),
        host_path=item.host_path,
        image=image,
        image_sub_path=validate.path(item.image_sub_path, f"{where}.image_sub_path", required=False),
        read_only=item.readonly,
        recursive_read_only=item.recursive_read_only,
        propagation=propagation,
        selinux_relabel=item.selinux_relabel,
        uid_mappings=common.id_mappings(item.uidMappings, f"{where}.uidMappings"),
        gid_mappings=common.id_mappings(item.gidMappings, f"{where}.gidMappings"),
        options=_mount_options(item, f"{where}.mount_options"),
    )


def _mount_options(item: pb.Mount, field: str) -> tuple[MountOption, ...]:
    for option in validate.items(item.mount_options, field, limit=len(MOUNT_OPTIONS)):
        if option not in MOUNT_OPTIONS:
            raise InvalidArgument(
                f"{field}: {validate.excerpt(option)} is none of {', '.join(MOUNT_OPTIONS)}"
            )
    return tuple(option for option in MOUNT_OPTIONS if option in item.mount_options)


def _devices(config: pb.ContainerConfig) -> tuple[Device, ...]:
    result = []
    for index, item in enumerate(validate.items(config.devices, "config.devices", limit=1024)):
        where = f"config.devices[{index}]"
        permissions = item.permissions or "rwm"
        if not set(permissions) <= set("rwm") or len(permissions) > 3:
            raise InvalidArgument(
                f"{where}.permissions {validate.excerpt(permissions)} must be letters of 'rwm'"
            )
        host_path = validate.absolute(item.host_path, f"{where}.host_path")
        container_path = validate.absolute(item.container_path or host_path, f"{where}.container_path")
        result.append(Device(host_path=host_path, container_path=container_path, permissions=permissions))
    return tuple(result)


def _security(context: pb.LinuxContainerSecurityContext, field: str) -> SecurityRequest:
    user_id = group_id = None
    if context.HasField("run_as_user"):
        user_id = validate.number(context.run_as_user.value, f"{field}.run_as_user", 0, validate.MAX_UID)
    user_name = validate.line(context.run_as_username, f"{field}.run_as_username", limit=validate.MAX_NAME)
    if context.HasField("run_as_group"):
        group_id = validate.number(context.run_as_group.value, f"{field}.run_as_group", 0, validate.MAX_UID)
        if user_id is None and not user_name:
            raise InvalidArgument(f"{field}.run_as_group needs run_as_user or run_as_username")
    capabilities = context.capabilities
    return SecurityRequest(
        user_id=user_id,
        user_name=user_name,
        group_id=group_id,
        supplemental_groups=common.groups(context.supplemental_groups, f"{field}.supplemental_groups"),
        strict_groups=validate.pick(
            _POLICIES, context.supplemental_groups_policy, f"{field}.supplemental_groups_policy"
        ),
        add_capabilities=_capabilities(capabilities.add_capabilities, f"{field}.capabilities"),
        drop_capabilities=_capabilities(capabilities.drop_capabilities, f"{field}.capabilities"),
        ambient_capabilities=_capabilities(capabilities.add_ambient_capabilities, f"{field}.capabilities"),
        privileged=context.privileged,
        no_new_privs=context.no_new_privs,
        read_only_root=context.readonly_rootfs,
        # CRI cannot tell an empty list from none.
        masked_paths=_paths(context.masked_paths, f"{field}.masked_paths") or None,
        read_only_paths=_paths(context.readonly_paths, f"{field}.readonly_paths") or None,
        seccomp=common.seccomp(
            context.seccomp if context.HasField("seccomp") else None, context.seccomp_profile_path, field
        ),
        apparmor=common.apparmor(
            context.apparmor if context.HasField("apparmor") else None, context.apparmor_profile, field
        ),
        selinux_label=common.selinux(context.selinux_options, f"{field}.selinux_options"),
    )


def _capabilities(values: object, field: str) -> tuple[str, ...]:
    listed: tuple[str, ...] = validate.items(values, field, limit=128)  # type: ignore[arg-type]
    return tuple(validate.word(value, field, limit=64) for value in listed)


def _paths(values: object, field: str) -> tuple[str, ...]:
    listed: tuple[str, ...] = validate.items(values, field, limit=1024)  # type: ignore[arg-type]
    return tuple(validate.absolute(value, field) for value in listed)


def container_filter(value: pb.ContainerFilter) -> ContainerFilter:
    """Which containers to list."""
    phase = None
    if value.HasField("state"):
        phase = validate.pick(_PHASES, value.state.state, "filter.state.state")
    return ContainerFilter(
        id=validate.text(value.id, "filter.id", limit=validate.MAX_ID),
        pod_id=validate.text(value.pod_sandbox_id, "filter.pod_sandbox_id", limit=validate.MAX_ID),
        phase=phase,
        labels=validate.pairs(value.label_selector, "filter.label_selector"),
    )


def stats_filter(value: pb.ContainerStatsFilter) -> ContainerFilter:
    """Whose statistics to list."""
    return ContainerFilter(
        id=validate.text(value.id, "filter.id", limit=validate.MAX_ID),
        pod_id=validate.text(value.pod_sandbox_id, "filter.pod_sandbox_id", limit=validate.MAX_ID),
        labels=validate.pairs(value.label_selector, "filter.label_selector"),
    )
