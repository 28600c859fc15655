"""What QEMU's jail holds: QEMU, the libraries and modules it loads, firmware, and two files it reads."""

from __future__ import annotations

from pathlib import Path

from orlop.host import process
from orlop.hypervisor.jail.enter import PROC
from orlop.hypervisor.jail.spawn import Jail
from orlop.hypervisor.jail.tree import TreeContents, prepare
from orlop.hypervisor.qemu import systemcalls
from orlop.hypervisor.qemu.cmdline import SHARE
from orlop.linux import architecture

# Below its own directories of data, by name: what the machine types that have a direct boot read.
_FIRMWARE = ("bios*.bin", "kvmvapic.bin", "linuxboot*.bin", "multiboot*.bin", "pvh.bin")
_MODULES = ("accel-*.so",)
_READS = (Path("/proc/sys/vm/overcommit_memory"), Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"))
# QEMU serves the pod's volumes with the owners that the guest gives its files. These count over the ids of
# its own user namespace only (capabilities(7)).
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID")


async def tree(root: Path, program: Path) -> Path:
    """The tree of files for ``program`` below ``root``. Raises FailedPrecondition, OSError."""
    said = await process.run([program, "-L", "help"], timeout=30)
    places = [Path(line).resolve() for line in said.stdout.decode(errors="replace").splitlines() if line]
    firmware = [path for place in places for name in _FIRMWARE for path in sorted(place.glob(name))]
    libraries = program.parent.parent / "lib"
    modules = [
        path
        for place in (libraries / architecture.own().triplet / "qemu", libraries / "qemu")
        for name in _MODULES
        for path in sorted(place.glob(name))
    ]
    contents = TreeContents(
        objects=(program, *modules),
        files=tuple(firmware),
        texts=tuple((str(path), path.read_text(encoding="ascii")) for path in _READS if path.exists()),
        # Its file server changes modes by /proc/self/fd.
        links=(("/proc/self", f"{PROC}/self"),),
        directories=("/dev", PROC, SHARE),
    )
    return await prepare(root, contents)


def jail(tree: Path, owner: int, share: Path, accelerator: str, guard: systemcalls.Guard) -> Jail:
    """The jail of one machine, which shows it ``share`` and the accelerator's device.

    Raises FailedPrecondition."""
    kvm = accelerator == "kvm"
    return Jail(
        tree=tree,
        owner=owner,
        binds=((share, SHARE),),
        devices=("null", "kvm") if kvm else ("null",),
        capabilities=_CAPABILITIES,
        program=systemcalls.program(guard, kvm=kvm),
        # QEMU asks for them where it puts translated code, which runs an eighth slower in small pages.
        # What else emulation keeps about a guest lies in many places, where a huge page is mostly empty.
        unasked_huge_pages=kvm,
    )
