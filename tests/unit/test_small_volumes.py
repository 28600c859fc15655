"""Small volumes: recognised by a kubelet's path, read whole on the host, and made the same in a guest."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import FailedPrecondition
from orlop.guest.containers.entries import bring_to, make
from orlop.guest.containers.volumes import PodVolumes
from orlop.guest.devices.block import MountedDisks
from orlop.guest.loop import Loop
from orlop.guest.streams.bound import BoundSockets
from orlop.guest.streams.table import Streaming
from orlop.host import mounts
from orlop.host.watching import Watcher
from orlop.storage import snapshot
from orlop.storage.kubelet import recognise
from orlop.storage.snapshot import DISK, InMotion, NotCopied, directories_of, read_volume
from orlop.wire.messages import Fill, Refused
from orlop.wire.values import VolumeEntry
from tests.volumes.kubelet import PodDirectory

LIMIT = 4 << 20


@dataclass(frozen=True)
class Asked:
    host_path: str
    read_only: bool = True
    recursive_read_only: bool = False
    propagation: str = "private"


@pytest.fixture
def kubelet(tmp_path: Path) -> PodDirectory:
    return PodDirectory(tmp_path, "uid-1")


def content(place: Path) -> dict[str, object]:
    """All that is in a directory, by its path there."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        name, mode = os.fspath(path.relative_to(place)), path.lstat().st_mode
        found[name] = (
            os.fspath(path.readlink())
            if path.is_symlink()
            else (mode, None if path.is_dir() else path.read_bytes())
        )
    return found


def test_only_what_the_kubelet_made_for_this_pod_is_recognised(kubelet: PodDirectory, tmp_path: Path) -> None:
    config = os.fspath(kubelet.atomic("configmap", "config", {"key": b"value"}))
    empty, hosts = os.fspath(kubelet.empty_dir("empty")), os.fspath(kubelet.etc_hosts())
    log = os.fspath(kubelet.termination_log("main"))

    def kind(path: str, uid: str = "uid-1", **more: object) -> str:
        found = recognise(Asked(path, **more), uid)  # type: ignore[arg-type]
        return found.kind if found else ""

    assert kind(config) == "copy"
    assert kind(empty) == kind(empty, read_only=False) == "disk"
    assert kind(hosts, read_only=False) == "file"
    assert kind(log, read_only=False) == "log"
    assert kind(config, read_only=False) == "", "nobody could write to a copy for the host"
    assert kind(hosts) == kind(log) == ""
    assert kind(config, propagation="rslave") == kind(hosts, read_only=False, propagation="rslave") == ""
    assert kind(empty, propagation="rslave") == kind(empty, propagation="rshared") == "disk"
    assert kind(config, uid="uid-2") == kind(config, uid="") == kind(config, uid="/uid-1") == ""
    assert kind(f"{config}/key") == kind(f"{config}-not-there") == kind(os.fspath(tmp_path)) == ""
    assert kind(os.fspath(kubelet.path / "volumes")) == ""


def test_what_a_driver_swaps_in_memory_is_copied(
    kubelet: PodDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else of a driver's is: it may change at any depth, of which nobody hears."""
    volume = kubelet.csi("secrets")
    kinds = {os.fspath(volume): "tmpfs"}
    monkeypatch.setattr(mounts, "is_mounted", lambda path: path in kinds)
    monkeypatch.setattr(mounts, "kind_of", lambda path: kinds[path])

    def kind(**more: object) -> str:
        found = recognise(Asked(os.fspath(volume), **more), "uid-1")  # type: ignore[arg-type]
        return found.kind if found else ""

    assert kind() == ""
    kubelet.swap(volume, {"key": b"value"})
    assert kind() == "copy"
    assert kind(read_only=False) == kind(propagation="rslave") == ""
    kinds[os.fspath(volume)] = "ext4"
    assert kind() == ""
    kinds.clear()
    assert kind() == ""


@pytest.mark.parametrize(
    ("place", "read_only"),
    [
        ("volumes/kubernetes.io~configmap/x", True),
        ("volumes/kubernetes.io~secret/x", True),
        ("volumes/kubernetes.io~empty-dir/x", False),
        ("etc-hosts", False),
        ("containers/main/0a1b2c3d", False),
    ],
)
def test_what_a_kubelet_makes_is_no_link_to_a_directory_of_the_host(
    kubelet: PodDirectory, tmp_path: Path, place: str, read_only: bool
) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("of the host")
    path = kubelet.path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(etc if "volumes" in place else etc / "passwd")
    with pytest.raises(FailedPrecondition, match=f"{place} is a symbolic link to {etc}"):
        recognise(Asked(os.fspath(path), read_only=read_only), "uid-1")
    # The kubelet's own directory may be one, and so may a path that is none of its making.
    path.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(kubelet.path.parent.parent)
    config = elsewhere / kubelet.atomic("configmap", "y", {}).relative_to(kubelet.path.parent.parent)
    found = recognise(Asked(os.fspath(config)), "uid-1")
    assert found is not None and found.kind == "copy"
    (kubelet.path / "own").symlink_to(etc)
    assert recognise(Asked(os.fspath(kubelet.path / "own")), "uid-1") is None


def test_a_volume_is_read_as_it_is_and_nothing_is_followed(kubelet: PodDirectory, tmp_path: Path) -> None:
    config = kubelet.atomic("configmap", "config", {"key": b"value", "deep/er": b"down"}, mode=0o640)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of the host")
    (config / "out").symlink_to(outside)
    entries = read_volume(os.fspath(config), LIMIT)
    by_path = {entry.path: entry for entry in entries}
    assert by_path["out"].kind == "link"
    assert by_path["out"].target == os.fspath(outside)
    assert not any("of the host" in str(entry.data) for entry in entries)
    stamp = by_path["..data"].target
    assert by_path[f"{stamp}/key"].data == b"value"
    assert by_path[f"{stamp}/key"].mode == 0o640
    paths = list(by_path)
    for number, path in enumerate(paths):
        assert not path or path.rpartition("/")[0] in paths[:number], "those above come first"


def test_what_no_copy_can_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with pytest.raises(NotCopied, match="file is too large"):
        read_volume(os.fspath(tmp_path), 99)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotCopied, match="fifo is neither"):
        read_volume(os.fspath(tmp_path), LIMIT)
    (tmp_path / "fifo").unlink()
    monkeypatch.setattr(snapshot, "MAX_ENTRIES", 1)
    with pytest.raises(NotCopied, match="more than 1 file"):
        read_volume(os.fspath(tmp_path), LIMIT)


def test_a_volume_that_changes_all_the_time_is_never_read_half(kubelet: PodDirectory) -> None:
    """Each state has the same number in all of its files."""

    def state(number: int) -> dict[str, bytes]:
        return {name: str(number).encode() for name in "abcdefgh"}

    config = kubelet.atomic("configmap", "config", state(0))
    ended = threading.Event()

    def change() -> None:
        number = 0
        # Now and then there is a moment in which a reading can be whole.
        while not ended.wait(0.002):
            number += 1
            kubelet.atomic("configmap", "config", state(number))

    changing = threading.Thread(target=change)
    changing.start()
    whole = 0
    try:
        while whole < 50:
            try:
                entries = {entry.path: entry for entry in read_volume(os.fspath(config), LIMIT)}
            except InMotion:
                continue
            stamp = entries["..data"].target
            assert len({entries[f"{stamp}/{name}"].data for name in "abcdefgh"}) == 1
            whole += 1
    finally:
        ended.set()
        changing.join()


def test_an_empty_dir_is_plain_while_only_directories_are_in_it(kubelet: PodDirectory) -> None:
    empty = kubelet.empty_dir("empty", mode=0o2775)
    (empty / "one/two").mkdir(parents=True)
    for name in (DISK, f"{DISK}.new"):
        (empty / name).write_bytes(b"a disk")
    found = directories_of(os.fspath(empty))
    assert found is not None
    assert [entry.path for entry in found] == ["", "one", "one/two"]
    assert found[0].mode == 0o2775
    (empty / "one/file").touch()
    assert directories_of(os.fspath(empty)) is None


def test_a_copy_becomes_what_the_volume_is(kubelet: PodDirectory, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    states = ({"key": b"1", "gone": b"1"}, {"key": b"2", "come/deep": b"2"}, {"key": b"2", "come/deep": b"2"})
    for state in states:
        config = kubelet.atomic("configmap", "config", state)
        bring_to(os.fspath(copy), read_volume(os.fspath(config), LIMIT))
        assert content(copy) == content(config)
        assert copy.stat().st_mode == config.stat().st_mode


def test_a_file_in_place_stays_the_same_file(tmp_path: Path) -> None:
    def state(data: bytes) -> tuple[VolumeEntry, ...]:
        return VolumeEntry(), VolumeEntry(path="hosts", kind="file", data=data, mode=0o644)

    bring_to(os.fspath(tmp_path), state(b"first"))
    with (tmp_path / "hosts").open("rb") as file:
        bring_to(os.fspath(tmp_path), state(b"2nd"), in_place=True)
        assert file.read() == b"2nd"
        bring_to(os.fspath(tmp_path), state(b"another"))
        file.seek(0)
        assert file.read() == b"2nd"
    assert content(tmp_path) == {"hosts": (0o100644, b"another")}


def test_parts_of_a_daemon_that_is_gone_are_not_mixed_with_the_next_ones(tmp_path: Path) -> None:
    loop = Loop(pytest.fail)
    volumes = PodVolumes(
        MountedDisks(loop), BoundSockets(Streaming(loop, pytest.fail), pytest.fail, pytest.fail)
    )
    volumes._small = os.fspath(tmp_path)  # else a tmpfs

    def part(name: str) -> tuple[VolumeEntry, ...]:
        return VolumeEntry(), VolumeEntry(path=name, kind="file", data=name.encode())

    volumes.fill(Fill(id="v", entries=part("old"), more=True))
    volumes.forget_parts()
    volumes.fill(Fill(id="v", entries=part("first"), more=True))
    assert not (tmp_path / "v").exists(), "nothing is done before all is there"
    volumes.fill(Fill(id="v", entries=part("second")))
    assert set(content(tmp_path / "v")) == {"first", "second"}
    with pytest.raises(Refused, match="does not hold"):
        volumes.place("another")
    volumes.drop("v")
    volumes.drop("v")
    assert not (tmp_path / "v").exists()


def test_what_is_right_is_not_touched(kubelet: PodDirectory, tmp_path: Path) -> None:
    config = kubelet.atomic("configmap", "config", {"key": b"value"})
    entries = read_volume(os.fspath(config), LIMIT)
    copy = tmp_path / "copy"
    bring_to(os.fspath(copy), entries)
    before = {path: path.lstat().st_ctime_ns for path in (copy, *copy.rglob("*"))}
    bring_to(os.fspath(copy), entries)
    assert {path: path.lstat().st_ctime_ns for path in (copy, *copy.rglob("*"))} == before


NAMES = st.sampled_from(["a", "b", "..data", "x_tmp"])
KINDS = st.sampled_from(["directory", "file", "link"])
TREES = st.dictionaries(
    st.one_of(NAMES, st.tuples(NAMES, NAMES).map("/".join)),
    st.tuples(KINDS, st.binary(max_size=4)),
    max_size=6,
)


@given(st.lists(TREES, min_size=1, max_size=3))
def test_any_state_follows_any_other(
    tmp_path_factory: pytest.TempPathFactory, trees: list[dict[str, tuple[str, bytes]]]
) -> None:
    """Directories become files, links become directories, and nothing stays that was not said."""
    copy = tmp_path_factory.mktemp("copy")
    for tree in trees:
        # What has something below it is a directory.
        above = {path.rpartition("/")[0] for path in tree if "/" in path}
        said = dict.fromkeys(above, ("directory", b"")) | {
            path: entry for path, entry in tree.items() if path not in above
        }
        entries = [VolumeEntry(mode=0o755)]
        for path, (kind, data) in sorted(said.items()):
            entries.append(
                VolumeEntry(
                    path=path,
                    kind=kind,  # type: ignore[arg-type]
                    mode=0o777 if kind == "link" else 0o750,
                    modified=1700000000000000001 if kind == "file" else 0,
                    data=data if kind == "file" else b"",
                    target="nowhere" if kind == "link" else "",
                )
            )
        bring_to(os.fspath(copy), entries)
        found = {os.fspath(path.relative_to(copy)) for path in copy.rglob("*")}
        assert found == said.keys()
        for path, (kind, data) in said.items():
            place = copy / path
            assert place.is_symlink() == (kind == "link")
            if kind == "file":
                assert place.read_bytes() == data
    # What nobody has seen yet is made with less ado, and is the same then.
    new = tmp_path_factory.mktemp("new")
    make(os.fspath(new), entries)
    assert states(new) == states(copy)


def states(root: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[os.fspath(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns if data else 0, data)
    return found


async def test_one_watcher_tells_of_many_places(tmp_path: Path) -> None:
    watcher = Watcher()
    told: list[str] = []
    again = asyncio.Event()

    def hear(name: str) -> None:
        told.append(name)
        again.set()

    def first() -> None:
        hear("first")

    def second() -> None:
        hear("second")

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    number = watcher.watch(os.fspath(tmp_path / "one"), first)
    watcher.watch(os.fspath(tmp_path / "one"), second)
    watcher.watch(os.fspath(tmp_path / "two"), second)
    try:
        (tmp_path / "one/file").touch()
        async with asyncio.timeout(30):
            while set(told) != {"first", "second"}:
                await again.wait()
                again.clear()
        watcher.forget(number, first)
        watcher.forget(number, first)
        told.clear()
        (tmp_path / "one/other").touch()
        async with asyncio.timeout(30):
            while not told:
                await again.wait()
                again.clear()
        assert set(told) == {"second"}
        with pytest.raises(FileNotFoundError):
            watcher.watch(os.fspath(tmp_path / "three"), first)
    finally:
        watcher.close()
        watcher.close()
