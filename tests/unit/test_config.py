"""The configuration file: every key has bounds, and a wrong one is named with its value and its range."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from orlop.config import Config, load
from orlop.daemon import hypervisor
from orlop.errors import InvalidArgument
from orlop.hypervisor.qemu.settings import QemuConfig


def keys(kind: inspect.Type, prefix: str = "") -> Iterator[tuple[str, inspect.Type]]:
    """Every key of the file with the type of its value."""
    assert isinstance(kind, inspect.StructType)
    for field in kind.fields:
        if isinstance(field.type, inspect.StructType):
            yield from keys(field.type, f"{prefix}{field.encode_name}.")
        elif field.name != "others":
            yield prefix + field.encode_name, field.type


KEYS = {
    **dict(keys(inspect.type_info(Config))),
    **dict(keys(inspect.type_info(QemuConfig), "vm.qemu.")),
}
NUMBERS = {key: kind for key, kind in KEYS.items() if isinstance(kind, inspect.IntType | inspect.FloatType)}


def line(key: str, value: str) -> str:
    """One key as a file."""
    table, _, name = key.rpartition(".")
    return f"[{table}]\n{name} = {value}\n" if table else f"{name} = {value}\n"


def refusal(tmp_path: Path, text: str) -> str:
    """What is said to a file that is not taken, without the file's name."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        hypervisor(load(path).vm)
    return str(caught.value).removeprefix(f"configuration file {path}: ").removeprefix("the configuration: ")


def bounded(kind: inspect.Type) -> bool:
    """Whether not every value of the TOML type is taken."""
    match kind:
        case inspect.IntType(ge=least, le=most) | inspect.FloatType(ge=least, le=most):
            return least is not None and most is not None
        case inspect.Metadata(type=inspect.StrType(pattern=pattern), extra_json_schema=words):
            return bool(pattern) and bool(words and words.get("description"))
        case inspect.VarTupleType(item_type=item):
            return bounded(item)
        case inspect.BoolType() | inspect.LiteralType():
            return True
    return False


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_bounds(key: str) -> None:
    assert bounded(KEYS[key]), f"{key} takes any {KEYS[key]}: give it bounds, a pattern or choices"


@pytest.mark.parametrize("key", NUMBERS)
def test_the_bounds_of_every_number_hold(tmp_path: Path, key: str) -> None:
    kind = NUMBERS[key]
    assert isinstance(kind, inspect.IntType | inspect.FloatType)
    assert kind.ge is not None and kind.le is not None
    for value in (kind.ge - 1, kind.le + 1):
        said = refusal(tmp_path, line(key, str(value)))
        assert said.startswith(f"{key} is {value}, and must be a "), said
        assert said.endswith(f"number from {kind.ge} to {kind.le}"), said
    for value in ("nan", "inf") if isinstance(kind, inspect.FloatType) else ():
        assert refusal(tmp_path, line(key, value)).startswith(f"{key} is ")


@pytest.mark.parametrize("key", [key for key in KEYS if key not in NUMBERS])
def test_nonsense_is_named(tmp_path: Path, key: str) -> None:
    in_list = isinstance(KEYS[key], inspect.VarTupleType)
    said = refusal(tmp_path, line(key, '["\\n"]' if in_list else '"\\n"'))
    assert said.startswith(f'{key}{"[0]" if in_list else ""} is "\\n", and must be '), said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[vm.pool]\nsize = -5", "vm.pool.size is -5, and must be a whole number from 0 to 256"),
        ("[streaming]\nport = 99999", "streaming.port is 99999, and must be a whole number from 0 to 65535"),
        ("[vm]\nmax_vcpus = 'many'", 'vm.max_vcpus is "many", and must be a whole number from 1 to 255'),
        ("default_handler = 'jail'", 'default_handler is "jail", and must be "auto", "process" or "vm"'),
        ("[network]\nbin_dirs = ['/a', 'b']", 'network.bin_dirs[1] is "b", and must be an absolute path'),
        ("vm = 3", "vm is 3, and must be a table"),
        ("[vm.pool]\nsise = 1", "there is no key vm.pool.sise"),
        ("colour = 1", "there is no key colour"),
        ("[vm]\ncolour = 1", "there is no key vm.colour"),
        ("[vm.xen]\nbinary = 'x'", "there is no key vm.xen"),
        ("[vm.qemu]\ncolour = 1", "there is no key vm.qemu.colour"),
        ("[vm.others]\nqemu = 1", "there is no key vm.others"),
        ("[vm]\nhypervisor = 'xen'", 'vm.hypervisor is "xen", and must be one of these: qemu'),
        ("[vm]\nqemu = 'q'", "the key vm.qemu of the configuration is called vm.qemu.binary now"),
        (
            "[vm]\naccelerator = 'kvm'",
            "the key vm.accelerator of the configuration is called vm.qemu.accelerator now",
        ),
        ("[vm]\ndefault_vcpus = 9", "[vm] default_vcpus is 9, above max_vcpus (8)"),
        (
            "[vm]\nmax_memory_mib = 256",
            "[vm] default_memory_mib is 512, above max_memory_mib (256)",
        ),
        ("[vm.guest]\nkernel = '/k'", "[vm.guest] kernel, initrd and image go together: name all or none"),
        (
            "[vm]\nnames = ['kata', 'Kata']",
            'vm.names[1] is "Kata", and must be the handler of a RuntimeClass',
        ),
        (
            "[vm]\nnames = ['kata']\n[process]\nnames = ['kata']",
            "the handler's name kata is taken: names in [vm] and [process] are one list",
        ),
        ("[streaming]\ntls_key = '/k'", "[streaming] tls_key needs tls_cert: name both, or none"),
    ],
)
def test_what_is_said(tmp_path: Path, text: str, said: str) -> None:
    assert refusal(tmp_path, text) == said


@given(st.text(max_size=40))
def test_no_text_ends_otherwise_than_with_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        load(path)
    except InvalidArgument as error:
        assert str(error).startswith(f"configuration file {path}: ")


def test_a_configuration_can_be_written_down_again(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[vm.qemu]\nmachine = 'q35'\n[vm.pool]\nsize = 7\n")
    config = load(path)
    document = config.document()
    assert document["vm"]["qemu"] == {"machine": "q35"} and document["vm"]["pool"]["size"] == 7
    own = {key: value for key, value in document["vm"].items() if key != "qemu"}
    path.write_text(
        "[vm]\n"
        + "".join(
            f"{key} = {json.dumps(value)}\n"
            for key, value in own.items()
            if key not in ("guest", "pool", "volumes", "io")
        )
        + "[vm.qemu]\nmachine = 'q35'\n[vm.pool]\nsize = 7\n"
    )
    assert load(path) == config
