import lzma
import re
import stat
from pathlib import Path

import pytest

from orlop.config import GuestConfig
from orlop.errors import NotFound
from orlop.guestos import build, cpio, init, modules, packages, pythontree


def test_an_archive_is_always_the_same_and_aligned() -> None:
    entries = [cpio.directory("d"), cpio.file("d/f", b"abc", executable=True)]
    data = cpio.archive(entries)
    assert data == cpio.archive(entries)
    assert len(data) % 512 == 0
    assert data.startswith(b"070701")
    assert b"TRAILER!!!\0" in data


def test_an_archive_is_what_the_format_says() -> None:
    data = cpio.archive([cpio.file("x", b"12345"), cpio.character_device("c", 5, 1)])
    fields = [int(data[6 + 8 * place : 14 + 8 * place], 16) for place in range(13)]
    assert fields[1] == stat.S_IFREG | 0o644
    assert fields[6] == 5
    assert fields[11] == 2
    assert data[110:112] == b"x\0"
    assert data[112:117] == b"12345"
    second = data[120:]
    assert int(second[6 + 8 : 14 + 8], 16) == stat.S_IFCHR | 0o600
    assert [int(second[6 + 8 * place : 14 + 8 * place], 16) for place in (9, 10)] == [5, 1]


def make_modules(root: Path) -> modules.ModuleTree:
    def module(path: str, *depends: str, packed: bool = False) -> None:
        data = b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"
        target = root / "kernel" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lzma.compress(data) if packed else data)

    module("fs/a-fs.ko", "lib_a", "bus")
    module("lib/lib-a.ko.xz", "lib-b", packed=True)
    module("lib/lib_b.ko")
    module("net/filter/one.ko", "lib_b")
    (root / "modules.builtin").write_text("kernel/drivers/bus.ko\n")
    return modules.ModuleTree(root)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    tree = make_modules(tmp_path)
    assert tree.load_order(["a_fs", "one"]) == ["lib_b", "lib_a", "a_fs", "one"]
    assert tree.load_order(["bus"]) == []


def test_packed_modules_are_unpacked_and_renamed(tmp_path: Path) -> None:
    tree = make_modules(tmp_path)
    assert tree.relative("lib_a") == Path("kernel/lib/lib-a.ko")
    assert modules.content(tree.path("lib_a")).startswith(b"\x7fELF")
    assert tree.below(["kernel/net/"]) == ["one"]


def test_a_module_the_kernel_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no module nothing"):
        make_modules(tmp_path).load_order(["nothing"])


def test_the_script_loads_modules_in_order_and_becomes_the_agent() -> None:
    text = init.script("6.1", ["one.ko", "two.ko"], [("kernel/late.ko", True), ("kernel/maybe.ko", False)])
    assert text.startswith("#!/bin/busybox sh\n")
    assert text.index("one.ko") < text.index("two.ko") < text.index("erofs") < text.index("late.ko")
    assert "kernel/maybe.ko 2>/dev/null" in text
    assert "from orlop.guest.main import main; main()" in text
    assert "{" not in re.sub(r"\$\{[^}]*\}|\{\n|\}\n", "", text), "nothing is left to be filled in"


def test_the_agents_imports_are_found_wherever_they_are(tmp_path: Path) -> None:
    source = tmp_path / "main.py"
    source.write_text(
        "import os.path\nfrom json import loads\ndef f():\n    import zlib\n    from . import x\n"
    )
    names = pythontree.imports_of({"guest/main.py": source, "guest/__init__.py": source})
    assert {"os.path", "json", "zlib", "orlop.guest.main", "orlop.guest"} == set(names)


def test_the_agents_digest_is_that_of_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text("a")
    two.write_text("b")
    digests = {
        pythontree.agent_digest({"x": one}),
        pythontree.agent_digest({"y": one}),
        pythontree.agent_digest({"x": two}),
        pythontree.agent_digest({"x": one, "y": two}),
    }
    assert len(digests) == 4


def test_the_agent_imports_only_itself_and_the_standard_library() -> None:
    import sys

    names = pythontree.imports_of(pythontree.agent_sources())
    foreign = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"orlop"}
    assert foreign == set()
    own = ("orlop.guest", "orlop.linux", "orlop.wire")
    assert all(name.startswith(own) or name == "orlop" for name in names if "orlop" in name)


def test_a_tree_without_an_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"main\.py"):
        pythontree.agent_sources(tmp_path)


def test_what_a_package_depends_on() -> None:
    stanza = {"Package": "m", "Version": "1", "Pre-Depends": "python3.11-minimal (= 1)", "Depends": "dpkg"}
    assert packages._depends_on(stanza, r"python(3\.\d+)-minimal") == "3.11"
    with pytest.raises(NotFound, match="m 1 depends on nothing"):
        packages._depends_on({"Package": "m", "Version": "1"}, r"linux-image-(\d\S*-amd64)")


def test_files_named_by_hand_are_taken(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("kernel", "initrd", "image")]
    for path in names:
        path.write_text(path.name)
    config = GuestConfig(kernel=str(names[0]), initrd=str(names[1]), image=str(names[2]))
    found = build.find(config, tmp_path / "cache")
    assert (found.kernel, found.initrd, found.image) == tuple(names)
    assert found.size == sum(len(path.name) for path in names)
    names[2].write_text("other")
    assert build.find(config, tmp_path / "cache").digest != found.digest


def test_a_named_file_that_is_missing(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    with pytest.raises(NotFound, match="none"):
        build.find(GuestConfig(kernel=path, initrd=path, image=path), tmp_path)


@pytest.mark.parametrize("target", [None, "0" * 64])
def test_without_a_build_the_remedy_is_named(tmp_path: Path, target: str | None) -> None:
    if target is not None:
        (tmp_path / "current").symlink_to(target)
    with pytest.raises(NotFound, match="orlop guest build"):
        build.find(GuestConfig(), tmp_path)
