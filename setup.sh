#!/bin/sh
# Sets Orlop up in this checkout and proves it with `orlop demo`. Safe to run again.
#
#   ./setup.sh                 packages, environment, guest image, checks, demo
#   ./setup.sh --no-demo       the same without the demo
#   ./setup.sh --runtime-only  without what only the tests need (compiler, Go, linters)
#
# It installs packages of Debian 12 or newer (needs root for that), makes .venv, writes
# /etc/cni/net.d/10-orlop.conflist when no network is configured there, and builds the guest image
# in /var/lib/orlop. It starts no service.
set -eu
cd "$(dirname "$0")"

demo=yes
development=yes
for option; do
    case $option in
    --no-demo) demo=no ;;
    --runtime-only) development=no ;;
    -h | --help)
        sed -n '2,10s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        echo "setup: unknown option $option (see ./setup.sh --help)" >&2
        exit 2
        ;;
    esac
done

bold='' plain=''
[ ! -t 1 ] || { bold=$(printf '\033[1m') && plain=$(printf '\033[0m'); }
say() { printf '%s==> %s%s\n' "$bold" "$*" "$plain"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

runtime_packages="qemu-system-x86 skopeo containernetworking-plugins erofs-utils crun runc conmon
    iptables nftables libseccomp2 iproute2 e2fsprogs kmod cpio zstd busybox-static util-linux ca-certificates"
development_packages="debootstrap qemu-utils umoci make gcc libc6-dev binutils bzip2 curl git procps"

[ "$(uname -s)" = Linux ] || die "Orlop runs on Linux only, this is $(uname -s)"
[ "$(uname -m)" = x86_64 ] || die "Orlop runs on x86_64 only so far, this machine is $(uname -m)"
[ "$(id -u)" = 0 ] || die "run this as root: it installs packages, and pods need network namespaces and mounts"
command -v apt-get >/dev/null || die "this script uses apt-get (Debian 12 or newer); on another system install:
$runtime_packages
and Python 3.11 with venv, then: python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/orlop doctor"

# --- packages of the distribution -----------------------------------------------------------------

missing=
need() {
    for package; do
        dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q ' installed$' || missing="$missing $package"
    done
}

usable_python() {
    "$1" -c 'import sys, venv, ensurepip; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for python in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if command -v "$python" >/dev/null && usable_python "$python"; then
            command -v "$python"
            return
        fi
    done
    return 1
}

# apt itself is patient: half a minute for each address of each source, several times over.
apt() {
    apt-get -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o Acquire::Retries=1 "$@"
}

# Whether one of apt's sources takes a connection: apt says nothing while it waits. Behind a proxy nobody
# but apt can tell.
sources_answer() {
    [ -z "${http_proxy:-}${https_proxy:-}$(apt-config dump | grep -i '^Acquire::.*proxy')" ] || return 0
    sites=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        grep -v '^[[:space:]]*#' | grep -oE 'https?://[^/[:space:]]+' | sort -u)
    [ -n "$sites" ] || return 0
    for site in $sites; do
        port=80
        case $site in https:*) port=443 ;; esac
        host=${site#*://} host=${host##*@}
        case $host in *:*) port=${host##*:} host=${host%:*} ;; esac
        ! timeout 10 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$host" "$port" 2>/dev/null || return 0
    done
    return 1
}

# shellcheck disable=SC2086 # lists of words
need $runtime_packages
# shellcheck disable=SC2086
[ $development = no ] || need $development_packages
find_python >/dev/null || need python3 python3-venv

if [ -n "$missing" ]; then
    say "Looking whether apt's sources answer"
    sources_answer || die "none of apt's sources answers within 10 seconds:
$sites
Check this machine's network and its proxy (http_proxy, or Acquire::http::Proxy in /etc/apt/apt.conf.d)."
    say "Installing from the distribution:$missing"
    # Nothing that comes along may start a service. policy-rc.d is what dpkg scripts ask.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        trap 'exit 130' INT TERM
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    if ! apt install -y -q --no-install-recommends $missing; then
        say "Refreshing the package lists"
        apt update -q
        # shellcheck disable=SC2086
        apt install -y -q --no-install-recommends $missing ||
            die "apt-get could not install:$missing (its message is above)"
    fi
fi

# --- the Python environment -----------------------------------------------------------------------

python=$(find_python) || die "no Python 3.11 or newer with the venv module, although python3-venv was installed"
if [ -e .venv ] && ! usable_python .venv/bin/python; then
    say "Making .venv anew: the Python behind it is gone or too old"
    rm -rf .venv
fi
if [ ! -x .venv/bin/pip ]; then
    say "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
locked=packaging/requirements/runtime.txt
[ $development = no ] || locked=packaging/requirements/development.txt
stamp="$locked $(cat pyproject.toml src/orlop/__init__.py "$locked" | sha256sum)"
if [ "$(cat .venv/orlop-stamp 2>/dev/null)" != "$stamp" ]; then
    say "Installing the Python packages"
    pip=".venv/bin/pip install --quiet --disable-pip-version-check"
    # Nothing but the files whose hashes are listed; with them, Orlop itself needs no download to be built.
    $pip --require-hashes -r "$locked" ||
        die "pip could not install the packages listed in $locked (its message is above)"
    $pip --no-deps --no-build-isolation -e . || die "pip could not install Orlop itself (its message is above)"
    printf '%s\n' "$stamp" >.venv/orlop-stamp
fi

# --- the network of pods --------------------------------------------------------------------------

if ! ls /etc/cni/net.d/*.conflist /etc/cni/net.d/*.conf /etc/cni/net.d/*.json >/dev/null 2>&1; then
    say "Writing /etc/cni/net.d/10-orlop.conflist (bridge orlop0, 10.88.64.0/20)"
    mkdir -p /etc/cni/net.d
    cp src/orlop/cli/node/data/10-orlop.conflist /etc/cni/net.d/10-orlop.conflist
fi

# --- the guest image, the checks, the demo --------------------------------------------------------

say "Building the guest image"
if ! .venv/bin/orlop guest build; then
    # The package lists may be absent or too old for what the mirrors hold now.
    say "Refreshing the package lists and trying again"
    apt update -q || die "apt-get update failed (its message is above)"
    .venv/bin/orlop guest build
fi
say "Checking this machine"
.venv/bin/orlop doctor
if [ $demo = yes ]; then
    say "Running the demo"
    .venv/bin/orlop demo
fi

cat <<EOF

Orlop is set up. The commands are in $PWD/.venv/bin:
    export PATH=$PWD/.venv/bin:\$PATH
    orlopd &                    # the daemon, socket /run/orlop/orlop.sock
    orlop run --rm IMAGE        # or point a kubelet, or crictl, at the socket
EOF
