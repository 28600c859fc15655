"""Build the guest, or find the one that was built.

A build ends in ``CACHE/<digest>/`` with the kernel, the initial RAM disk and the root image; the digest
is over all that went in: package versions, the agent's source, this recipe. ``CACHE/current`` names the
newest. What does not depend on the agent is kept in ``CACHE/base-<digest>/``, so that a change of the agent
costs two seconds and no download. Everything is made aside and renamed, by one build of a cache at a time:
another's base must not go while this one copies it.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from orlop.config import GuestConfig
from orlop.errors import DataLoss, NotFound
from orlop.guest.devices import drivers
from orlop.guestos import download, packages, pruning, pythontree, rootfs
from orlop.host import threads
from orlop.linux import architecture
from orlop.linux.removal import remove_tree
from orlop.value import UNREADABLE

Progress = Callable[[str], None]

_KEPT = 2
_POLL = 0.1
_REMEDY = "run `orlop guest build`"


class GuestArtifacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM boots. ``digest`` is over the inputs of a build, or the contents of files named by hand;
    ``size`` is the bytes of all three files."""

    kernel: Path
    initrd: Path
    image: Path
    digest: str
    size: int


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    recipe: str
    agent: str
    kernel: str
    python: str
    packages: tuple[packages.Package, ...]
    sizes: tuple[tuple[str, int], ...] = ()


async def build(
    cache: Path, *, progress: Progress | None = None, package: Path | None = None
) -> GuestArtifacts:
    """Build the guest from what apt offers now, unless that very one is there already.

    ``progress`` is called with one line of text per step; ``package`` is another source directory for
    the agent than this program's own. Raises NotFound when a package or a tool is missing,
    ProcessFailed when a tool fails, NetworkSilent when apt's sources do not answer; a failure or
    cancellation leaves an earlier build as it was.
    """
    say = progress or (lambda line: None)
    sources = pythontree.agent_sources(package)
    chosen = await packages.resolve(say)
    await threads.call(cache.mkdir, parents=True, exist_ok=True)
    async with _alone(cache, say):
        try:
            return await _build(cache, sources, chosen, say)
        except download.DownloadFailed:
            # The index is older than what the mirror still has.
            await download.refresh(say)
            return await _build(cache, sources, await packages.resolve(say), say)


@asynccontextmanager
async def _alone(cache: Path, say: Progress) -> AsyncIterator[None]:
    """Hold the cache's lock, which ends with the process; wait for a build that has it."""
    fd = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        waited = False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    say("another build is at work: waiting for it")
                waited = True
                await asyncio.sleep(_POLL)
        yield
    finally:
        os.close(fd)


async def _build(
    cache: Path, sources: dict[str, Path], chosen: packages.PackageSet, say: Progress
) -> GuestArtifacts:
    recipe = await threads.call(_recipe)
    manifest = _Manifest(
        recipe=recipe,
        agent=await threads.call(pythontree.agent_digest, sources),
        kernel=chosen.kernel,
        python=chosen.python,
        packages=chosen.packages,
    )
    digest = _digest(manifest)
    target = cache / digest
    if not _complete(target):
        base = await _base(cache, recipe, chosen, say)
        say("compiling the agent")
        await _assemble(base, sources, manifest, target)
    await threads.call(_make_current, cache, digest)
    result = _artifacts(target, digest)
    say(f"guest {digest[:12]}: kernel {chosen.kernel}, Python {chosen.python}, {result.size >> 20} MiB")
    return result


def find(guest: GuestConfig, cache: Path) -> GuestArtifacts:
    """The files named in the configuration, or else the last :func:`build` that is of this program.

    Programs of other versions may share the cache. Raises NotFound with the remedy when there is none.
    """
    if guest.kernel:
        return _named(Path(guest.kernel), Path(guest.initrd), Path(guest.image))
    try:
        digest = (cache / "current").readlink().name
    except OSError:
        raise NotFound(f"there is no guest image in {cache}: {_REMEDY}") from None
    own = _recipe(), pythontree.agent_digest(pythontree.agent_sources())
    target = cache / digest
    complete = _complete(target)
    if complete and _made_of(target) == own:
        return _artifacts(target, digest)
    others = [path for path in cache.glob("*") if len(path.name) == len(digest) and path != target]
    for path in sorted(others, key=_last_used, reverse=True):
        if _complete(path) and _made_of(path) == own:
            return _artifacts(path, path.name)
    if not complete:
        raise NotFound(f"the guest image in {target} is not complete: {_REMEDY}")
    raise NotFound(f"the guest image in {target} belongs to another version of this program: {_REMEDY}")


class GuestInUse:
    """The guest that a process boots: no other program prunes what it has found, until :meth:`close`."""

    def __init__(self, guest: GuestConfig, cache: Path) -> None:
        self._guest = guest
        self._cache = cache
        self._held: dict[Path, int] = {}

    def find(self) -> GuestArtifacts:
        """See the function :func:`find`."""
        while True:
            found = find(self._guest, self._cache)
            if self._guest.kernel:
                return found
            build = found.image.parent
            with suppress(OSError):
                held = pruning.hold(build)
                # Who can make no VMs looks again and again: what a look held before is let go of.
                self._release(build)
                self._held[build] = held
                if _complete(build):
                    return found

    def close(self) -> None:
        """Let others prune it."""
        for build in tuple(self._held):
            self._release(build)

    def _release(self, build: Path) -> None:
        if (before := self._held.pop(build, None)) is not None:
            os.close(before)


def _named(kernel: Path, initrd: Path, image: Path) -> GuestArtifacts:
    digest = hashlib.sha256()
    size = 0
    for path in (kernel, initrd, image):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
                size += os.fstat(file.fileno()).st_size
        except OSError as error:
            raise NotFound(f"the guest file {path} cannot be read: {error.strerror}") from error
    return GuestArtifacts(kernel=kernel, initrd=initrd, image=image, digest=digest.hexdigest(), size=size)


def _recipe() -> str:
    """A digest over this very recipe: its source, what the guest's devices need, and the architecture."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(drivers.__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(repr(architecture.own()).encode())
    return digest.hexdigest()


def _digest(manifest: _Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()


_FILES = ("vmlinuz", "initrd", "root.erofs")


def _artifacts(target: Path, digest: str) -> GuestArtifacts:
    kernel, initrd, image = (target / name for name in _FILES)
    size = sum(path.stat().st_size for path in (kernel, initrd, image))
    return GuestArtifacts(kernel=kernel, initrd=initrd, image=image, digest=digest, size=size)


def _complete(target: Path) -> bool:
    try:
        manifest = _manifest(target)
        return all((target / name).stat().st_size == size for name, size in manifest.sizes)
    except (OSError, *UNREADABLE):
        return False


def _manifest(target: Path) -> _Manifest:
    return msgspec.json.decode((target / "manifest.json").read_bytes(), type=_Manifest)


def _made_of(target: Path) -> tuple[str, str]:
    """The recipe and the agent of a build; "" of one that has just gone."""
    try:
        manifest = _manifest(target)
    except OSError:
        return "", ""
    return manifest.recipe, manifest.agent


def _last_used(build: Path) -> float:
    try:
        return build.stat().st_mtime
    except OSError:
        return 0.0


async def _base(cache: Path, recipe: str, chosen: packages.PackageSet, say: Progress) -> Path:
    """The directory with ``vmlinuz``, ``initrd``, ``root/`` and ``unpacked/`` of these packages."""
    key = hashlib.sha256(msgspec.json.encode((recipe, chosen))).hexdigest()[:16]
    target = cache / f"base-{key}"
    if target.is_dir():
        pruning.used(target)
        return target
    with _aside(cache) as work:
        unpacked = work / "unpacked"
        await packages.unpack(chosen.packages, unpacked, say)
        say("making the initial RAM disk")
        interpreter = pythontree.Interpreter(unpacked, chosen.python)
        await rootfs.make_base(interpreter, chosen.kernel, work / "root", work / "initrd")
        kernel = rootfs.kernel_image(unpacked, chosen.kernel)
        await threads.call(shutil.copyfile, kernel, work / "vmlinuz")
        await threads.call(_drop_unused, unpacked)
        await threads.call(_publish, work, target)
    return target


def _drop_unused(unpacked: Path) -> None:
    """Of the unpacked packages only Python and its libraries are needed again."""
    gconv = f"usr/lib/{architecture.own().triplet}/gconv"
    for name in ("boot", "lib/modules", "usr/lib/modules", "usr/share", gconv):
        remove_tree(unpacked / name)


async def _assemble(base: Path, sources: dict[str, Path], manifest: _Manifest, target: Path) -> None:
    with _aside(target.parent) as work:
        root = work / "root"
        await threads.call(shutil.copytree, base / "root", root, symlinks=True)
        interpreter = pythontree.Interpreter(base / "unpacked", manifest.python)
        await pythontree.install_agent(interpreter, sources, root)
        await rootfs.make_image(root, work / "root.erofs")
        await threads.call(remove_tree, root)
        for name in ("vmlinuz", "initrd"):
            await threads.call(shutil.copyfile, base / name, work / name)
        sizes = tuple((name, (work / name).stat().st_size) for name in _FILES)
        if not all(size for name, size in sizes):
            raise DataLoss(f"the build of the guest made an empty file: {sizes}")
        complete = msgspec.structs.replace(manifest, sizes=sizes)
        (work / "manifest.json").write_bytes(msgspec.json.encode(complete))
        await threads.call(_publish, work, target)


class _aside:  # noqa: N801 - used like a function
    """A working directory in ``cache`` that is gone afterwards, unless it was renamed."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(prefix=pruning.ASIDE, dir=self._cache))
        self._path.chmod(0o755)
        return self._path

    def __exit__(self, *unused: object) -> None:
        with suppress(OSError):
            remove_tree(self._path)


def _publish(work: Path, target: Path) -> None:
    for path in work.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    remove_tree(target)
    work.rename(target)


def _make_current(cache: Path, digest: str) -> None:
    link = cache / f".current-{os.getpid()}"
    with suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(digest)
    link.rename(cache / "current")
    pruning.used(cache / digest)
    pruning.prune((path for path in cache.glob("*") if len(path.name) == len(digest)), kept=_KEPT)
    pruning.prune(cache.glob("base-*"), kept=1)
    # Of builds that were killed: none takes as long as these have been there.
    pruning.prune(cache.glob(f"{pruning.ASIDE}*"), kept=0)
