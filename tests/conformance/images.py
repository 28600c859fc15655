"""The images that the conformance and end-to-end runs pull, made on this machine.

They have the names that critest asks for (``registry.k8s.io/...``, ``gcr.io/...``) and stand in one
registry on loopback, to which ``registries.conf`` redirects those hosts. What each image holds follows
what the specs look at: see the functions below.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orlop.cli.demo.imagewriter import LayerContent, LayerWriter, Pusher, WrittenImage
from tests.conformance import tools
from tests.patience import PATIENCE

HOSTS = ("registry.k8s.io", "k8s.gcr.io", "gcr.io")
E2E = "registry.k8s.io/e2e-test-images"
STAGING = "gcr.io/k8s-staging-cri-tools"
START_TIMEOUT = 30.0 * PATIENCE

# Prints what a set-uid root program may become; the specs of no_new_privs read this line.
NNP_SOURCE = """
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\\n", (int)geteuid()); return 0; }
"""

PAUSE_SOURCE = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) { signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap); for (;;) pause(); }
"""

NGINX_CONF = """
user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
  access_log /dev/stdout;
  server { listen PORT; root /usr/share/nginx/html; }
}
"""

HTTPD_CONF = """
ServerName localhost
ServerRoot /etc/apache2
PidFile /var/run/httpd.pid
Listen 80
User www-data
Group www-data
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
DocumentRoot /usr/share/httpd
ErrorLog /dev/stderr
LogLevel info
"""

PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = "root:x:0:\ndaemon:x:1:\nadm:x:4:root\nwww-data:x:33:\nnogroup:x:65534:\n"

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base_layer(compress: str = "gzip") -> LayerContent:
    """busybox with its applets as hard links, so that a mount over /bin/x hits only x."""
    binary = tools.busybox()
    layer = LayerWriter()
    for path in (
        "bin",
        "dev",
        "etc",
        "home",
        "proc",
        "sys",
        "usr",
        "usr/bin",
        "usr/sbin",
        "var",
        "var/www",
        "run",
    ):
        layer.directory(path)
    layer.directory("root", 0o700)
    layer.directory("tmp", 0o1777)
    layer.file("bin/busybox", binary.read_bytes(), 0o755)
    for line in (binary.parent / "busybox.links").read_text().split():
        name = line.rsplit("/", 1)[-1]
        if name != "busybox":
            layer.hard_link(f"bin/{name}", "bin/busybox")
    layer.symbolic_link("usr/bin/env", "/bin/env")
    layer.symbolic_link("var/run", "/run")
    layer.file("etc/passwd", PASSWD)
    layer.file("etc/group", GROUP)
    layer.file("etc/nsswitch.conf", "hosts: files dns\n")
    return layer.finish(compress)


def marker_layer(name: str, text: str = "") -> LayerContent:
    """A layer of one file, so that two images differ."""
    layer = LayerWriter()
    layer.file(name, text)
    return layer.finish()


def libraries(layer: LayerWriter, root: Path, *binaries: str) -> None:
    """The shared libraries of the binaries, found in the unpacked packages."""
    wanted, seen = list(binaries), set()
    directories = [root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu", root / "lib64"]
    while wanted:
        name = wanted.pop()
        for line in tools.run(["readelf", "-d", root / name]).splitlines():
            if "(NEEDED)" not in line:
                continue
            library = line.split("[")[1].rstrip("]")
            if library in seen:
                continue
            seen.add(library)
            found = next((place / library for place in directories if (place / library).exists()), None)
            if found is None:
                raise tools.ToolError(f"the library {library} of {name} is in none of the unpacked packages")
            real = found.resolve()
            layer.file(f"usr/lib/x86_64-linux-gnu/{library}", real.read_bytes(), 0o755)
            wanted.append(os.fspath(real.relative_to(root.resolve())))
    loader = (root / "lib64/ld-linux-x86-64.so.2").resolve()
    layer.file("lib64/ld-linux-x86-64.so.2", loader.read_bytes(), 0o755)
    layer.directory("lib64")
    layer.symbolic_link("lib", "usr/lib")


def nginx_layer(port: int) -> LayerContent:
    """Debian's nginx: a master process, /var/run/nginx.pid, one worker."""
    packages = ["nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "libzstd1", "zlib1g"]
    root = tools.debian_packages(packages)
    layer = LayerWriter()
    layer.tree(root, ["usr/sbin/nginx"])
    libraries(layer, root, "usr/sbin/nginx")
    layer.directory("var/log/nginx")
    layer.directory("var/lib/nginx", owner=33)
    layer.directory("usr/share/nginx/html")
    layer.file("usr/share/nginx/html/index.html", "<h1>Welcome to nginx</h1>\n")
    layer.file("etc/nginx/nginx.conf", NGINX_CONF.replace("PORT", str(port)))
    return layer.finish()


def httpd_layer() -> LayerContent:
    """Debian's Apache under the name httpd, which it writes into its log when it starts."""
    packages = [
        "apache2-bin",
        "libapr1",
        "libaprutil1",
        "libc6",
        "libcrypt1",
        "libpcre2-8-0",
        "libuuid1",
        "libexpat1",
    ]
    root = tools.debian_packages(packages)
    layer = LayerWriter()
    modules = [f"usr/lib/apache2/modules/mod_{name}.so" for name in ("mpm_event", "authz_core", "dir")]
    layer.tree(root, modules)
    layer.file("usr/sbin/httpd", (root / "usr/sbin/apache2").read_bytes(), 0o755)
    libraries(layer, root, "usr/sbin/apache2", *modules)
    for path in ("etc/apache2", "var/log/apache2", "usr/share/httpd"):
        layer.directory(path)
    layer.file("usr/share/httpd/index.html", "<h1>It works!</h1>\n")
    layer.file("etc/apache2/httpd.conf", HTTPD_CONF)
    return layer.finish()


def nonewprivs_layer() -> LayerContent:
    """A set-uid root program that prints its effective uid."""
    layer = LayerWriter()
    layer.file("nnp", tools.compile_c("nnp", NNP_SOURCE).read_bytes(), 0o4755)
    return layer.finish()


def pause_layer() -> LayerContent:
    """A program that waits and reaps."""
    layer = LayerWriter()
    layer.file("pause", tools.compile_c("pause", PAUSE_SOURCE).read_bytes(), 0o755)
    return layer.finish()


def groups_layer() -> LayerContent:
    """The user and the group that the supplemental-groups specs expect in the image."""
    layer = LayerWriter()
    layer.file("etc/passwd", PASSWD + "default-user:x:1000:1000:Linux User:/home/default-user:/bin/sh\n")
    layer.file("etc/group", GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
    layer.directory("home/default-user", owner=1000)
    return layer.finish()


def fill(address: str) -> None:
    """Push every image to the registry at ``address``."""
    push = Pusher(address).push
    base = base_layer()
    shell = {"Env": [PATH], "Cmd": ["sh"]}
    busybox = WrittenImage((base,), shell)
    push(f"{E2E}/busybox", ["1.29-2", "latest"], busybox)
    web = {
        "Env": [PATH],
        "Entrypoint": ["nginx", "-g", "daemon off;"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    }
    push(f"{E2E}/nginx", ["1.14-2"], WrittenImage((base, nginx_layer(80)), web))
    push(f"{STAGING}/hostnet-nginx-amd64", ["latest"], WrittenImage((base, nginx_layer(12003)), web))
    httpd = {"Env": [PATH], "Cmd": ["httpd", "-f", "/etc/apache2/httpd.conf", "-D", "FOREGROUND"]}
    push(f"{E2E}/httpd", ["2.4.39-4"], WrittenImage((base, httpd_layer()), httpd))
    push(
        f"{E2E}/nonewprivs",
        ["1.3"],
        WrittenImage((base, nonewprivs_layer()), {"Env": [PATH], "Entrypoint": ["/nnp"]}),
    )
    pause = WrittenImage((pause_layer(),), {"Entrypoint": ["/pause"], "User": "65535:65535"})
    push("registry.k8s.io/pause", ["3.9", "3.10"], pause)
    push("k8s.gcr.io/pause", ["3.9"], pause)
    for name in ("1", "2", "3", "latest", "digest"):
        push(
            f"{STAGING}/test-image-{name}",
            ["latest"],
            WrittenImage((base, marker_layer(f"test-image-{name}")), shell),
        )
    for tag in ("test", "all"):
        push(f"{STAGING}/test-image-tag", [tag], WrittenImage((base, marker_layer(tag)), shell))
    push(
        f"{STAGING}/test-image-tags", ["1", "2", "3"], WrittenImage((base, marker_layer("same-image")), shell)
    )
    users = {
        "uid": "1002",
        "username": "www-data",
        "uid-group": "1003:1004",
        "username-group": "www-data:1004",
    }
    for name, user in users.items():
        push(f"{STAGING}/test-image-user-{name}", ["latest"], WrittenImage((base,), {**shell, "User": user}))
    groups = WrittenImage((base, groups_layer()), {**shell, "User": "1000"})
    push(f"{STAGING}/test-image-predefined-group", ["latest"], groups)
    _fill_own(push, base, shell)


def _fill_own(push: Callable[..., str], base: LayerContent, shell: dict[str, Any]) -> None:
    """Images for our own end-to-end tests: other platforms, zstd, files hidden by upper layers."""
    foreign = WrittenImage((base, marker_layer("foreign")), shell, architecture="riscv64")
    native = WrittenImage((base, marker_layer("native")), shell)
    push("registry.k8s.io/orlop-test/foreign", ["1"], foreign)
    push("registry.k8s.io/orlop-test/multi", ["1"], foreign, native)
    push("registry.k8s.io/orlop-test/zstd", ["1"], WrittenImage((base_layer("zstd"),), shell))
    lower, upper = LayerWriter(), LayerWriter()
    for name in ("kept", "hidden"):
        lower.file(f"data/{name}", name)
        lower.file(f"opaque/{name}", name)
    upper.file("data/.wh.hidden", b"")
    upper.file("opaque/.wh..wh..opq", b"")
    upper.file("opaque/new", "new")
    settings = {
        "Env": [PATH, "FROM_IMAGE=yes"],
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["pwd; id -u; echo $FROM_IMAGE"],
        "WorkingDir": "/data",
        "User": "1234:1234",
    }
    push(
        "registry.k8s.io/orlop-test/layers",
        ["1"],
        WrittenImage((base, lower.finish(), upper.finish()), settings),
    )


CONFIG = """version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: ROOT}
  cache: {blobdescriptor: inmemory}
  maintenance: {readonly: {enabled: READONLY}}
http: {addr: "ADDRESS"}
"""


@contextmanager
def serve(root: Path, address: str, *, read_only: bool = True) -> Iterator[str]:
    """docker-registry on ``address`` over the storage ``root``, until the block ends."""
    root.mkdir(parents=True, exist_ok=True)
    text = CONFIG.replace("ROOT", os.fspath(root)).replace("ADDRESS", address)
    # Its log goes to a file: a pipe that nobody reads would stop it after 64 KiB.
    with tempfile.TemporaryDirectory(prefix="orlop-registry-") as scratch:
        config, log = Path(scratch) / "config.yml", Path(scratch) / "log"
        config.write_text(text.replace("READONLY", "true" if read_only else "false"))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [tools.docker_registry(), "serve", config],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            _wait_until_up(process, address, log)
            yield address
        finally:
            process.terminate()
            process.wait(START_TIMEOUT)


def _wait_until_up(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    limit = time.monotonic() + START_TIMEOUT
    while time.monotonic() < limit:
        if process.poll() is not None:
            said = log.read_text(errors="replace")[-400:]
            raise tools.ToolError(f"docker-registry on {address} ended at once: {said}")
        connection = http.client.HTTPConnection(address, timeout=2)
        try:
            connection.request("GET", "/v2/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise tools.ToolError(f"docker-registry on {address} did not answer within {START_TIMEOUT:g} s")


def storage() -> Path:
    """The registry's storage with every image in it, made once for each version of these files."""
    digest = hashlib.sha256()
    for name in ("images.py", "tools.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return stored("registry", digest.hexdigest()[:16], fill)


def stored(name: str, key: str, filling: Callable[[str], None]) -> Path:
    """A registry's storage that ``filling`` has pushed to, kept in the cache below ``name`` under ``key``."""
    target = tools.cache_dir() / name / key
    if target.exists():
        return target
    tools.say("making the test images")
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        with serve(making, f"127.0.0.1:{tools.free_port()}", read_only=False) as address:
            filling(address)
        tools.place(making, target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    # What another checkout may still serve stays for a day.
    for old in target.parent.iterdir():
        if old != target and time.time() - old.stat().st_mtime > 86400:
            shutil.rmtree(old, ignore_errors=True)
    return target


def registries_conf(address: str) -> str:
    """containers-registries.conf(5) that redirects the hosts of the suite to ``address``."""
    parts = ['unqualified-search-registries = ["docker.io"]\n']
    parts.extend(
        f'[[registry]]\nprefix = "{host}"\nlocation = "{address}/{host}"\ninsecure = true\n' for host in HOSTS
    )
    return "\n".join(parts)


if __name__ == "__main__":
    print(storage())
