"""The Debian package: built in a root of Debian 13, installed in bare roots of Debian 12 and 13."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conformance.tools import ToolError
from tests.lab import root
from tests.lab.root import say
from tests.page import blocks

BUILDER = "13"
BUILD = ("debhelper", "lintian", "fakeroot", "python3", "python3-pip")
RESULT = Path("build/deb")


def build() -> Path:
    """Build the package of this checkout; its path. Raises ToolError, for what lintian finds as well."""
    with root.builder(BUILDER, BUILD) as place:
        say("building the Debian package")
        made = place / root.INSIDE / RESULT
        root.enter(place, ["packaging/debian/build.sh", RESULT])
        shutil.rmtree(RESULT, ignore_errors=True)
        shutil.copytree(made, RESULT)
    found = sorted(RESULT.glob("*.deb"))
    if len(found) != 1:
        raise ToolError(f"one package was to be built, and there are {len(found)} in {RESULT}")
    say(f"{found[0]}: {found[0].stat().st_size >> 20} MiB")
    return found[0]


# What the page says, word by word.
_INSTALL = f"""
set -eu
cd /root
export DEBIAN_FRONTEND=noninteractive
{{
{blocks("kubernetes.md")["install"]}
}} >install.log 2>&1 || {{
    tail -40 install.log
    exit 1
}}
"""
_USE = """
set -eu
# On a bare machine only the network of pods is missing, and doctor says how to get one.
orlop doctor >/root/doctor.log && exit 1
mkdir -p /etc/cni/net.d
eval "$(sed -n "s/.* -> without one of your cluster's: //p" /root/doctor.log)"
orlop doctor
orlop demo
"""
# As the DaemonSet does it: the machine's file system below /host, and commands in a chroot of it.
_NODE = """
set -eu
DEBIAN_FRONTEND=noninteractive apt-get -y -qq --no-install-recommends install systemd >/root/apt.log
mkdir -p /host /var/lib/kubelet
mount --rbind / /host
echo 'KUBELET_EXTRA_ARGS="--node-ip=192.0.2.1"' >/etc/default/kubelet
printf 'cgroupDriver: systemd\n' >/var/lib/kubelet/config.yaml
systemctl disable orlopd
find /etc /var/lib/kubelet -type f ! -path '/etc/orlop/config.toml' -exec sha256sum {} + | sort >/root/before
for again in 1 2; do
    orlop node install --root /host --package /root/*.deb --kubelet | tee /root/said
    grep -q 'takes effect at the next boot' /root/said
    test "$(systemctl is-enabled orlopd)" = enabled
    grep -q '^cgroup_driver = "systemd"$' /etc/orlop/config.toml
    grep -q -- '--node-ip=192.0.2.1 --container-runtime-endpoint=unix:///run/orlop/orlop.sock"' \\
        /etc/orlop/kubelet.env
    grep -q '^EnvironmentFile=/etc/orlop/kubelet.env$' /etc/systemd/system/kubelet.service.d/90-orlop.conf
done
systemd-analyze verify --man=no /usr/lib/systemd/system/orlop*.service
for again in 1 2; do
    orlop node rollback --root /host
    test "$(systemctl is-enabled orlopd)" = disabled
done
find /etc /var/lib/kubelet -type f ! -path '/etc/orlop/config.toml' -exec sha256sum {} + | sort >/root/after
diff /root/before /root/after
umount -l /host
"""
_REMOVE = """
set -eu
orlopd --version
apt-get -y -qq remove orlop
test -e /etc/orlop/config.toml
test ! -e /usr/lib/orlop
DEBIAN_FRONTEND=noninteractive apt-get -y -qq purge orlop
test ! -e /etc/orlop
test ! -e /var/lib/orlop
"""


def install(package: Path) -> None:
    """Install the package where nothing else is, run a pod, and remove it. Raises ToolError."""
    for number in root.RELEASES:
        with root.bare(number) as place:
            shutil.copy(package, place / "root")
            say(f"installing {package.name} in Debian {number}")
            root.enter(place, ["sh", "-c", _INSTALL], inside="/")
            say(f"running a pod in Debian {number}")
            # Nothing that it leaves in the network can outlive a namespace of its own.
            root.enter(place, ["sh", "-c", _USE], inside="/", network=False)
            say(f"making Debian {number} a node, and undoing it")
            root.enter(place, ["sh", "-c", _NODE], inside="/")
            say(f"removing {package.name} from Debian {number}")
            root.enter(place, ["sh", "-c", _REMOVE], inside="/", network=False)
