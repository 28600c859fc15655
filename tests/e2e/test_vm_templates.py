"""What clones of one template have in common, and those of two have not. Needs root and QEMU."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.daemon import hypervisor as backend
from orlop.guestos.build import build
from orlop.host.tasks import beside
from orlop.hypervisor.base import Hypervisor, Template
from orlop.pods import capabilities
from tests.e2e.guest_machine import CONFIG, guest_of, security, settle

CACHE = Path(os.environ.get("ORLOP_TEST_CACHE", Path.home() / ".cache/orlop"))
ANYTHING = security(
    privileged=True,
    masked_paths=(),
    read_only_paths=(),
    bounding=capabilities.ALL,
    effective=capabilities.ALL,
)
TELL = """
import os, struct
vector = dict(struct.iter_unpack("QQ", open("/proc/self/auxv", "rb").read()))
memory = open("/proc/self/mem", "rb", 0)
memory.seek(vector[25])  # AT_RANDOM, of which the C library makes the canary
print(next(line.split()[0] for line in open("/proc/kallsyms") if line.endswith(" _text\\n")))
print(memory.read(16).hex())
print(os.urandom(16).hex())
for name in ("boot_id", "uuid"):
    print(open("/proc/sys/kernel/random/" + name).read().strip())
"""


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="orlop-vm-"))
    yield directory
    shutil.rmtree(directory)


async def test_clones_of_one_template_share_where_the_kernel_lies_and_no_more(place: Path) -> None:
    artifacts = await build(CACHE / "guest")
    hypervisor = backend(CONFIG).booting(artifacts, place / "root")
    first = await hypervisor.template(settle)
    # Its own time from beginning to end, as a rotation makes it; clones come from the first meanwhile.
    async with beside(hypervisor.another(settle)) as making:
        told = [await _told(hypervisor, first, place, artifacts.image) for _ in range(2)]
        second = await making
    assert second.directory != first.directory and second.made > first.made
    told.append(await _told(hypervisor, second, place, artifacts.image))
    # There are some five hundred places for a kernel: two may get the same one, and hardly one more.
    for _ in range(2):
        if told[2][0] == told[0][0]:
            await hypervisor.retire(second)
            second = await hypervisor.another(settle)
            told[2] = await _told(hypervisor, second, place, artifacts.image)
    kernels = [one[0] for one in told]
    assert kernels[0] == kernels[1] != kernels[2], kernels
    assert int(kernels[0], 16), "the address was not shown"
    others = [line for one in told for line in one[1:]]
    assert len(set(others)) == len(others) == 12, told
    await hypervisor.retire(first)
    assert [one.name for one in (place / "root").glob("template-*")] == [second.directory.name]
    assert await hypervisor.template(settle) == second


async def _told(hypervisor: Hypervisor, template: Template, place: Path, image: Path) -> list[str]:
    async with guest_of(hypervisor, template, place) as guest:
        guest.root = await guest.plug(image)
        done = await guest.run("one", "/usr/bin/python3", "-S", "-E", "-c", TELL, security=ANYTHING)
        assert done.exit.code == 0, done
        return done.out.split()
