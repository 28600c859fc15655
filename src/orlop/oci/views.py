"""Where the daemon sees the files of a caller whose mount namespace is another than its own.

buildah binds a root directory and volumes below the bundle in a mount namespace that it has made for that.
What stands in for the container is in that namespace; the daemon takes the same files where it sees them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from orlop.bundle import translate
from orlop.bundle.document import OciConfig, OciMount
from orlop.host import mounts
from orlop.oci.model import Bundle


def of_caller(config: OciConfig, bundle: Bundle) -> OciConfig:
    """The document with its root and its volumes at paths that are the daemon's. Blocks: for a thread.

    What is not there stays as it is, for others to complain of. Raises FailedPrecondition for what is mounted
    where only the caller sees it.
    """
    pid = bundle.companion.pid
    try:
        if Path(f"/proc/{pid}/ns/mnt").samefile("/proc/self/ns/mnt"):
            return config
    except OSError:  # it has ended; the engine will find out
        return config
    assert config.root is not None
    return msgspec.structs.replace(
        config,
        root=msgspec.structs.replace(config.root, path=_path(bundle, config.root.path)),
        mounts=tuple(_mount(bundle, mount) for mount in config.mounts or ()),
    )


def _mount(bundle: Bundle, mount: OciMount) -> OciMount:
    if not translate.is_bind(mount):
        return mount
    return msgspec.structs.replace(mount, source=_path(bundle, mount.source))


def _path(bundle: Bundle, path: str) -> str:
    try:
        return mounts.of_process(str(Path(bundle.directory, path)), bundle.companion.pid)
    except OSError:
        return path
