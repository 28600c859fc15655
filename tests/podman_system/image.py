"""A stand-in for the image that the suite takes from a registry.

Of its recipe (``test/system/build-testimage`` in podman's source) it has what the tests look at: busybox with
a web server, users and groups, an identity with a date of its own, a pause program, a working directory,
labels.
"""

from __future__ import annotations

from orlop.cli.demo.imagewriter import LayerContent, LayerWriter, Pusher, WrittenImage
from tests.conformance import images, tools

HOST, USER, NAME = "quay.io", "libpod", "testimage"
"""Under which name the tests ask for it."""

TAG, OTHER_TAG = "20220615", "00000004"
"""That of the image, and that of a small one which is pulled in the middle."""

PAUSE_IMAGE = "k8s.gcr.io/pause:3.5"
"""For a pod whose infra container is not podman's own."""

IDENTITY_DATE = 1600000000
"""The date of the file testimage-id, which the tests print in time zones."""

DIRECTORIES = """bin dev etc etc/apk etc/network home home/podman lib lib64 media mnt opt proc run sbin srv
 sys usr usr/bin usr/lib usr/local usr/local/bin usr/sbin usr/share
 var var/cache var/lib var/log var/spool var/tmp"""

ACCOUNTS = """root:0:0:/root:/bin/ash
bin:1:1:/bin:/sbin/nologin
daemon:2:2:/sbin:/sbin/nologin
adm:3:4:/var/adm:/sbin/nologin
mail:8:12:/var/mail:/sbin/nologin
operator:11:0:/root:/sbin/nologin
guest:405:100:/dev/null:/sbin/nologin
nobody:65534:65534:/:/sbin/nologin"""

GROUPS = {
    "root": (0, "root"),
    "bin": (1, "root,bin,daemon"),
    "daemon": (2, "root,bin,daemon"),
    "sys": (3, "root,bin,adm"),
    "adm": (4, "root,adm,daemon"),
    "tty": (5, ""),
    "disk": (6, "root,adm"),
    "wheel": (10, "root"),
    "mail": (12, "mail"),
    "users": (100, "games"),
    "ping": (999, ""),
    "nogroup": (65533, ""),
    "nobody": (65534, ""),
}

PAUSE = """#!/bin/sh
echo Confirmed: testimage pause invoked as $0
while :; do
    sleep 0.1
done
"""


def base_layer() -> LayerContent:
    """busybox, each applet where it is looked for."""
    binary = tools.busybox()
    layer = LayerWriter()
    for path in DIRECTORIES.split():
        layer.directory(path)
    layer.directory("root", 0o700)
    layer.directory("tmp", 0o1777)
    layer.file("bin/busybox", binary.read_bytes(), 0o755)
    # A name that begins with busybox is busybox.
    layer.hard_link("bin/busybox-extras", "bin/busybox")
    for path in (binary.parent / "busybox.links").read_text().split():
        if path != "/bin/busybox" and path != "/linuxrc":
            layer.hard_link(path.strip("/"), "bin/busybox")
    layer.symbolic_link("var/run", "/run")
    layer.symbolic_link("etc/mtab", "../proc/mounts")
    passwd, shadow = [], []
    for line in ACCOUNTS.splitlines():
        name, uid, gid, home, shell = line.split(":")
        passwd.append(f"{name}:x:{uid}:{gid}:{name}:{home}:{shell}\n")
        shadow.append(f"{name}:!::0:::::\n")
    layer.file("etc/passwd", "".join(passwd))
    layer.file("etc/shadow", "".join(shadow), 0o640)
    layer.file("etc/group", "".join(f"{name}:x:{gid}:{members}\n" for name, (gid, members) in GROUPS.items()))
    layer.file("etc/services", "http\t80/tcp\n")
    layer.file("etc/nsswitch.conf", "hosts: files dns\n")
    layer.file("etc/profile", "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n")
    layer.file("etc/os-release", 'ID=busybox\nNAME="busybox"\n')
    return layer.finish()


def own_layer() -> LayerContent:
    """What the tests know the image by."""
    layer = LayerWriter()
    layer.directory("home/podman")
    layer.file("home/podman/testimage-id", f"{TAG}\n", date=IDENTITY_DATE)
    layer.file("home/podman/pause", PAUSE, 0o755)
    return layer.finish()


def fill(address: str) -> None:
    """Push the images to the registry at ``address``."""
    base = base_layer()
    settings = {
        "Env": [images.PATH],
        "Cmd": ["/bin/echo", "This container is intended for podman CI testing"],
        "WorkingDir": "/home/podman",
        "Labels": {"created_by": "test/system/build-testimage", "created_at": "2022-06-15T18:20:06Z"},
    }
    push = Pusher(address).push
    # Who builds upon an image wants to know of each of its layers.
    history = ("busybox", "what the tests know it by")
    push(f"{USER}/{NAME}", [TAG], WrittenImage((base, own_layer()), settings, history=history))
    small = WrittenImage((base,), {"Env": [images.PATH], "Cmd": ["sh"]}, history=history[:1])
    push(f"{USER}/{NAME}", [OTHER_TAG], small)
    pause = WrittenImage((images.pause_layer(),), {"Entrypoint": ["/pause"]}, history=("pause",))
    push(PAUSE_IMAGE.rpartition(":")[0], [PAUSE_IMAGE.rpartition(":")[2]], pause)
