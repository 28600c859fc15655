"""The files of a private daemon, and the images that the demo and the tests write."""

from __future__ import annotations

import io
import json
import tarfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orlop.cli.demo import lending, privatedaemon
from orlop.cli.demo.imagewriter import LayerWriter, WrittenImage, index
from orlop.config import Config, VmConfig, load


def settings(scratch: Path) -> privatedaemon.Settings:
    base = Config(root=str(scratch / "machine"), vm=VmConfig(default_memory_mib=300))
    return privatedaemon.Settings(
        scratch=scratch,
        mirrors={"registry.example": "127.0.0.1:5/registry.example"},
        handler="process",
        base=base,
        extra={"vm": {"template": False}, "top": {"log_level": "debug"}},
    )


def test_the_daemon_accepts_what_is_written(tmp_path: Path) -> None:
    one = settings(tmp_path)
    config = load(privatedaemon.write_files(one))
    assert config.socket == one.socket and config.log_level == "debug"
    assert config.default_handler == "process"
    assert config.vm.default_memory_mib == 300 and not config.vm.template
    assert config.network.conf_dir == str(tmp_path / "cni")
    registries = tomllib.loads(Path(config.images.registries_conf).read_text())
    assert registries["registry"][0]["location"] == "127.0.0.1:5/registry.example"
    network = json.loads((tmp_path / "cni" / "10-private.conflist").read_text())
    assert len(network["plugins"][0]["bridge"]) <= 15
    assert one.subnet.is_private and one.subnet.prefixlen == 24


def test_a_template_is_borrowed_and_given_back(tmp_path: Path) -> None:
    one = settings(tmp_path)
    machine = tmp_path / "machine" / "hypervisor"
    template = machine / "template-abc"
    template.mkdir(parents=True)
    (machine / "accelerator.json").write_text("{}")
    (machine / "boot-half-made").mkdir()
    with (template / "memory").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(5 << 20)
        file.write(b"page")
    lending.borrow(one.base, one.root)
    copy = tmp_path / "root" / "hypervisor"
    assert sorted(path.name for path in copy.iterdir()) == ["accelerator.json", "template-abc"]
    assert (copy / "template-abc" / "memory").read_bytes() == (template / "memory").read_bytes()
    assert (copy / "template-abc" / "memory").stat().st_blocks < 64
    (copy / "template-abc").rename(copy / "template-def")
    lending.give_back(one.base, one.root)
    assert (machine / "template-def" / "memory").exists() and not template.exists()
    before = (machine / "template-def").stat().st_ino
    lending.give_back(one.base, one.root)
    assert (machine / "template-def").stat().st_ino == before


def test_templates_of_daemons_with_one_process_id_are_given_back_whole(tmp_path: Path) -> None:
    """Threads stand for nodes in PID namespaces of their own, which have the same numbers."""
    base = Config(root=str(tmp_path / "machine"))
    (tmp_path / "machine").mkdir()
    roots = [tmp_path / f"root{number}" for number in range(8)]
    for number, root in enumerate(roots):
        made = root / "hypervisor" / f"template-{number}"
        made.mkdir(parents=True)
        (made / "memory").write_bytes(bytes(1 << 16))
    with ThreadPoolExecutor(len(roots)) as beside:
        for done in [beside.submit(lending.give_back, base, root) for root in roots]:
            done.result()
    kept = list((tmp_path / "machine").iterdir())
    assert [path.name for path in kept] == ["hypervisor"], "nothing stays beside it"
    assert [path.stat().st_size for path in kept[0].glob("template-*/memory")] == [1 << 16]


def test_images_are_reproducible() -> None:
    def make() -> WrittenImage:
        layer = LayerWriter()
        layer.directory("bin")
        layer.file("bin/a", b"content", 0o4755)
        layer.hard_link("a-link", "bin/a")
        layer.symbolic_link("link", "/bin/a")
        return WrittenImage((layer.finish(),), {"Cmd": ["/bin/a"]})

    one, two = make(), make()
    assert one.manifest().digest == two.manifest().digest
    assert one.layers[0].diff_id != one.layers[0].blob.digest
    with tarfile.open(fileobj=io.BytesIO(one.layers[0].blob.data)) as archive:
        names = archive.getnames()
        assert names.index("a-link") > names.index("bin/a")
        assert archive.getmember("bin/a").mode == 0o4755
    listing = json.loads(index([one, WrittenImage(one.layers, architecture="riscv64")]).data)
    assert [entry["platform"]["architecture"] for entry in listing["manifests"]] == ["amd64", "riscv64"]
