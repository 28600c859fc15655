from pathlib import Path

import msgspec
import pytest

from orlop.hypervisor.qemu.bays import bays
from orlop.hypervisor.qemu.cmdline import Arguments, Boot, Memory, Network, Sockets, machine_key, render

ARGUMENTS = Arguments(
    program="qemu-system-x86_64",
    name="vm1",
    machine="pc",
    accelerator="tcg",
    cpu="max",
    memory=Memory(size_mib=192, max_mib=1024, file=Path("/t/memory")),
    vcpus=1,
    max_vcpus=4,
    image=Path("/g/root.erofs"),
    share=Path("/vm/share"),
    sockets=Sockets(7, 8),
    network=Network(9),
    code_mib=32,
)


def option(argv: list[str], name: str) -> list[str]:
    return [argv[place + 1] for place, word in enumerate(argv) if word == name]


def change(**fields: object) -> Arguments:
    return msgspec.structs.replace(ARGUMENTS, **fields)


def test_a_clone_maps_the_templates_memory_privately_and_waits_for_its_state() -> None:
    argv = render(ARGUMENTS)
    assert "memory-backend-file,id=mem0,size=192M,mem-path=/t/memory,share=off" in option(argv, "-object")
    assert option(argv, "-incoming") == ["defer"]
    assert "-kernel" not in argv


def test_a_template_shares_its_memory_with_the_file() -> None:
    memory = Memory(size_mib=192, max_mib=192, file=Path("/t/memory"), shared=True)
    argv = render(change(memory=memory, boot=Boot(Path("/k"), Path("/i"))))
    assert "memory-backend-file,id=mem0,size=192M,mem-path=/t/memory,share=on" in option(argv, "-object")
    assert option(argv, "-kernel") == ["/k"]
    assert option(argv, "-initrd") == ["/i"]
    assert "-incoming" not in argv


def test_memory_can_grow_to_its_maximum() -> None:
    argv = render(ARGUMENTS)
    assert option(argv, "-m") == ["size=192M,maxmem=1024M"]
    assert "memory-backend-ram,id=mem1,size=832M,reserve=off" in option(argv, "-object")
    assert any(device.startswith("virtio-mem-pci") for device in option(argv, "-device"))


def test_memory_without_room_to_grow_has_no_such_device() -> None:
    argv = render(change(memory=Memory(size_mib=256, max_mib=256)))
    assert option(argv, "-m") == ["size=256M"]
    assert not any(device.startswith("virtio-mem-pci") for device in option(argv, "-device"))


def test_every_file_name_is_escaped() -> None:
    argv = render(
        change(
            name="a,b",
            image=Path("/x,read-only=off"),
            share=Path("/s,security_model=passthrough"),
            memory=Memory(size_mib=1, max_mib=1, file=Path("/m,share=on")),
        )
    )
    assert option(argv, "-name") == ["a,,b,debug-threads=on"]
    assert any("filename=/x,,read-only=off," in value for value in option(argv, "-blockdev"))
    assert any("path=/s,,security_model=passthrough," in value for value in option(argv, "-fsdev"))
    assert any("mem-path=/m,,share=on," in value for value in option(argv, "-object"))


def test_the_guest_is_confined() -> None:
    (sandbox,) = option(render(ARGUMENTS), "-sandbox")
    assert {"on", "spawn=deny", "elevateprivileges=deny", "obsolete=deny"} <= set(sandbox.split(","))


def test_what_lies_behind_the_devices_does_not_change_the_key() -> None:
    other = change(
        name="vm2",
        image=Path("/other"),
        share=Path("/elsewhere"),
        sockets=Sockets(20, 21),
        network=Network(22),
        boot=Boot(Path("/k"), Path("/i")),
        memory=Memory(size_mib=192, max_mib=1024, file=Path("/else"), shared=True),
        code_mib=128,
    )
    assert machine_key(other) == machine_key(ARGUMENTS)


@pytest.mark.parametrize(
    "fields",
    [
        {"machine": "q35"},
        {"accelerator": "kvm"},
        {"cpu": "host"},
        {"vcpus": 2},
        {"max_vcpus": 8},
        {"memory": Memory(size_mib=256, max_mib=1024)},
        {"memory": Memory(size_mib=192, max_mib=2048)},
        {"program": "/opt/qemu"},
        {"bays": bays(64)},
    ],
)
def test_what_the_machine_is_changes_the_key(fields: dict[str, object]) -> None:
    assert machine_key(change(**fields)) != machine_key(ARGUMENTS)


def test_devices_have_addresses_of_their_own() -> None:
    addresses = [
        word
        for device in option(render(ARGUMENTS), "-device")
        for word in device.split(",")
        if word.startswith("addr=")
    ]
    assert len(addresses) == len(set(addresses)) == 6


def test_a_kernel_on_trial_tells_its_progress() -> None:
    for verbose in (False, True):
        (words,) = option(render(change(boot=Boot(Path("/k"), Path("/i"), verbose))), "-append")
        assert ("quiet" in words.split()) is not verbose
