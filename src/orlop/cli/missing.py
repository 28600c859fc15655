"""What people know from podman and docker and is not here: one sentence each, with what to use instead."""

from __future__ import annotations

from collections.abc import Sequence

_NO_BUILD = "Orlop runs images and makes none: use buildah or podman build, then `orlop load`"
_POD_NETWORK = "networks are those of CNI, see docs/configuration.md; a pod gets the node's"

COMMANDS = {
    "build": _NO_BUILD,
    "buildx": _NO_BUILD,
    "push": "Orlop fetches images and sends none: use `orlop save` and skopeo copy",
    "history": "the steps by which an image was made are not kept; `orlop inspect` shows the rest of it",
    "search": "ask the registry itself, or skopeo list-tags",
    "manifest": _NO_BUILD,
    "mount": "the files of a container lie inside its VM: use `orlop cp` or `orlop exec`",
    "unmount": "nothing of a container is mounted on this machine",
    "update": "limits are set by `orlop run`; a kubelet may change those of its own containers",
    "create": "a container is made and started at once: use `orlop run -d`",
    "start": "use `orlop restart`, which also starts what has ended",
    "checkpoint": "a container cannot be frozen to disk; `orlop pause` stops it where it is",
    "network": _POD_NETWORK,
    "generate": "write the pod as YAML for a kubelet; nothing here makes it",
    "kube": "give the YAML to a kubelet, whose runtime this is, see docs/kubernetes.md",
    "play": "give the YAML to a kubelet, whose runtime this is, see docs/kubernetes.md",
    "compose": "use `orlop pod create` and `orlop run --pod`, or podman with orlop-oci",
    "secret": "mount a file with `orlop run -v`, or use Kubernetes",
    "machine": "every pod has a VM of its own already",
    "ls": "use `orlop ps`",
    "init": "a container is made and started at once: use `orlop run -d`",
    "prune": "write `orlop system prune`",
    "rmi": "write `orlop rmi`",
    "auto-update": "pull the new image and run it, or let Kubernetes do that",
    "unshare": "Orlop runs as root",
}
"""By the name of a command."""

_STARTUP = "write --health-start-period, in which checks that fail do not count"
_NO_WORDS = "the daemon's interface, CRI, has no words"

FLAGS = {
    "--shm-size": "/dev/shm has 64 MiB: mount a larger one elsewhere with --tmpfs",
    "--gpus": "a VM has no device of this machine but disks and its network",
    **dict.fromkeys(("--health-start-interval", "--health-startup-cmd"), _STARTUP),
    "--health-on-failure": "nothing ends it for its health; wait with `orlop wait --condition unhealthy`",
    **dict.fromkeys(("--publish-all", "-P", "--expose"), "name each port with --publish"),
    "--memory-reservation": "a VM has what --memory says",
    "--oom-score-adj": "a client cannot choose it; inside a VM the kernel decides",
    "--timezone": "write -e TZ=ZONE",
    "--tz": "write -e TZ=ZONE",
    "--log-opt": "logs are files, which `orlop logs` reads",
    "--rootfs": "pack the directory with tar, and `orlop import` it",
    "--secret": "mount a file with `orlop run -v`, or use Kubernetes",
    "--http-proxy": "write -e http_proxy=ADDRESS",
    "--attach": "without -d its output is shown anyway; -i hands stdin through",
    **dict.fromkeys(("--uts", "--cgroupns", "--cgroups"), "these are always a container's or its pod's own"),
    "--systemd": "an image whose first process is systemd needs --privileged",
    "--tls-verify": "write that into registries.conf, see docs/images.md",
    "--all-tags": "pull each by its name",
    "--userns": "under the handler vm all users are those of the VM",
    "--pid": "containers of one pod share their processes: use `orlop pod create` and --pod",
    "--ipc": "containers of one pod share it: use `orlop pod create` and --pod",
    "--net": "write --network",
    "--ip": "addresses are the CNI plug-in's to give",
    "--mac-address": "addresses are the CNI plug-in's to give",
    "--link": "put both containers into one pod: `orlop pod create`, and --pod",
    "--volumes-from": "name the volumes again with -v",
    "--log-driver": "logs are files, which `orlop logs` reads",
    "--annotation": "use --label",
    "--runtime": "use --handler",
    "--cpuset-cpus": f"a client cannot choose them: {_NO_WORDS} for a whole pod",
    "--memory-swap": "VMs have no swap",
    "--sig-proxy": "signals are not passed on; an interrupt stops the container",
    **dict.fromkeys(("--env", "-e"), "write `orlop exec NAME env KEY=VALUE COMMAND`"),
    **dict.fromkeys(("--workdir", "-w"), "write `orlop exec NAME sh -c 'cd PLACE && COMMAND'`"),
    **dict.fromkeys(("--user", "-u"), f"a command has its container's user; for another {_NO_WORDS}"),
    **dict.fromkeys(("--detach", "-d"), "write `orlop exec NAME sh -c 'COMMAND &'`"),
    "--arch": "images are pulled for this machine",
    "--platform": "images are pulled for this machine",
    "--no-stream": "`orlop stats` prints one table; leave it out",
    "--size": "`orlop stats` and `orlop system df` tell sizes",
}
"""By the name of an option of ``run``, ``exec`` and the like."""


def explain(error: Exception, words: Sequence[str]) -> str:
    """What to say of a usage error, if it is about something that podman has; else ""."""
    if option := getattr(error, "option_name", ""):
        return f"there is no {option}: {FLAGS[option]}" if option in FLAGS else ""
    if not str(getattr(error, "message", "")).startswith("No such command"):
        return ""
    named = [word for word in words if not word.startswith("-")]
    if named[:1] in (["image"], ["container"]):
        del named[0]
    command = named[0] if named else ""
    return f"there is no command {command}: {COMMANDS[command]}" if command in COMMANDS else ""
