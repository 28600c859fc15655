"""The guest's root file system and initial RAM disk, put together from the unpacked packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from orlop.errors import NotFound
from orlop.guestos import cpio, init, modules
from orlop.guestos.pythontree import Interpreter
from orlop.host import process, threads
from orlop.linux import architecture

_DIRECTORIES = (
    *("dev", "etc", "proc", "root", "run", "sys", "tmp", "var", "mnt"),
    *("usr/bin", "usr/sbin", "usr/lib64"),
)
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_LIBRARIES = ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1", "libffi.so.8")
_INITRD_DIRECTORIES = ("bin", "dev", "modules", "proc", "root", "sys")
# The kernel runs this one to load a module on demand.
_APPLETS = {"usr/sbin/modprobe": "/usr/bin/busybox"}
_UUID = "6f726c6f-7000-4000-8000-000000000001"


async def make_base(interpreter: Interpreter, kernel: str, root: Path, initrd: Path) -> None:
    """Make the part that does not depend on the agent: the tree ``root`` and the file ``initrd``."""
    await threads.call(_skeleton, interpreter, root)
    tree = modules.ModuleTree(_module_directory(interpreter.unpacked, kernel))
    busybox = find_busybox(interpreter.unpacked)
    await threads.call(_copy_modules, tree, root / "usr/lib/modules" / kernel)
    await process.run([busybox, "depmod", "-b", root / "usr", kernel], timeout=120)
    for name in ("modules.order", "modules.symbols"):
        (root / "usr/lib/modules" / kernel / name).unlink(missing_ok=True)
    await threads.call(_write_initrd, tree, kernel, busybox, initrd)


async def make_image(root: Path, image: Path) -> None:
    """Write the EROFS image of ``root``, always the same bytes for the same tree."""
    await process.run(
        ["mkfs.erofs", "-d1", "-T0", f"-U{_UUID}", "--all-root", "-x-1", "--quiet", image, root], timeout=300
    )


def kernel_image(unpacked: Path, kernel: str) -> Path:
    """The kernel among the unpacked packages. Raises NotFound."""
    path = unpacked / "boot" / f"vmlinuz-{kernel}"
    if not path.is_file():
        raise NotFound(f"the kernel package has no /boot/vmlinuz-{kernel}")
    return path


def find_busybox(unpacked: Path) -> Path:
    """The static busybox among the unpacked packages. Raises NotFound."""
    for name in ("usr/bin/busybox", "bin/busybox"):
        if (unpacked / name).is_file():
            return unpacked / name
    raise NotFound("the package busybox-static has no busybox")


def _module_directory(unpacked: Path, kernel: str) -> Path:
    for name in ("lib/modules", "usr/lib/modules"):
        if (unpacked / name / kernel).is_dir():
            return unpacked / name / kernel
    raise NotFound(f"the kernel package has no modules for {kernel}")


def _skeleton(interpreter: Interpreter, root: Path) -> None:
    own = architecture.own()
    for name in (*_DIRECTORIES, f"usr/lib/{own.triplet}"):
        (root / name).mkdir(parents=True)
    for name, target in _LINKS.items():
        (root / name).symlink_to(target)
    for name in _LIBRARIES:
        _install(interpreter.shared_library(name), root / "usr/lib" / own.triplet / name)
    _install(interpreter.loader, root / "usr" / own.loader)
    _install(interpreter.binary, root / "usr/bin/python3")
    _install(find_busybox(interpreter.unpacked), root / "usr/bin/busybox")
    for name, target in _APPLETS.items():
        (root / name).symlink_to(target)


def _install(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _copy_modules(tree: modules.ModuleTree, target: Path) -> None:
    present = tree.present(modules.OPTIONAL)
    names = tree.load_order([*modules.LATE, *present, *tree.below(modules.ON_DEMAND)])
    for name in names:
        path = tree.relative(name)
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(modules.content(tree.path(name)))
    for name in ("modules.builtin", "modules.order"):
        shutil.copyfile(tree.directory / name, target / name)


def _write_initrd(tree: modules.ModuleTree, kernel: str, busybox: Path, initrd: Path) -> None:
    early = tree.load_order([*tree.present(modules.EARLY_OPTIONAL), *modules.EARLY])
    present = tree.present(modules.OPTIONAL)
    late = [name for name in tree.load_order([*present, *modules.LATE]) if name not in early]
    text = init.script(
        kernel,
        [f"{name}.ko" for name in early],
        [(tree.relative(name).as_posix(), name not in modules.OPTIONAL) for name in late],
    )
    entries = [cpio.directory(name) for name in _INITRD_DIRECTORIES]
    entries += [
        cpio.character_device("dev/console", 5, 1),
        cpio.file("init", text.encode(), executable=True),
        cpio.file("bin/busybox", busybox.read_bytes(), executable=True),
    ]
    entries += [cpio.file(f"modules/{name}.ko", modules.content(tree.path(name))) for name in early]
    initrd.write_bytes(cpio.archive(entries))
