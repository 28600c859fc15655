import re

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
    memory=Memory(size_mib=192, max_mib=1024, file=11),
    vcpus=1,
    max_vcpus=4,
    image=10,
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
    assert "memory-backend-file,id=mem0,size=192M,mem-path=/pid/self/fd/11,share=off" in option(
        argv, "-object"
    )
    assert option(argv, "-incoming") == ["defer"]
    assert "-kernel" not in argv


def test_a_template_shares_its_memory_with_the_file() -> None:
    memory = Memory(size_mib=192, max_mib=192, file=11, shared=True)
    argv = render(change(memory=memory, boot=Boot(12, 13)))
    assert "memory-backend-file,id=mem0,size=192M,mem-path=/pid/self/fd/11,share=on" in option(
        argv, "-object"
    )
    assert option(argv, "-kernel") == ["/pid/self/fd/12"]
    assert option(argv, "-initrd") == ["/pid/self/fd/13"]
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


def test_names_are_escaped() -> None:
    assert option(render(change(name="a,b")), "-name") == ["a,,b,process=qemu-system-x86_64,debug-threads=on"]


def test_no_file_of_the_host_is_named() -> None:
    argv = render(change(boot=Boot(12, 13)))
    places = {place for word in argv for place in re.findall(r"(?:^|=)(/[^,]*)", word)}
    assert places == {"/pid/self/fd/11", "/pid/self/fd/12", "/pid/self/fd/13", "/dev/fdset/0", "/share"}
    assert option(argv, "-add-fd") == ["fd=10,set=0"]


def test_qemu_confines_itself_where_its_jail_does_less() -> None:
    assert option(render(ARGUMENTS), "-sandbox") == []
    (sandbox,) = option(render(change(own_filter=True)), "-sandbox")
    assert {"on", "spawn=deny", "elevateprivileges=deny", "obsolete=deny"} <= set(sandbox.split(","))


def test_what_lies_behind_the_devices_does_not_change_the_key() -> None:
    other = change(
        name="vm2",
        image=30,
        sockets=Sockets(20, 21),
        network=Network(22),
        boot=Boot(12, 13),
        memory=Memory(size_mib=192, max_mib=1024, file=31, shared=True),
        code_mib=128,
        own_filter=True,
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
        {"bays": bays(64, 64)},
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
    assert len(addresses) == len(set(addresses)) == 7


def test_a_kernel_on_trial_tells_its_progress() -> None:
    for verbose in (False, True):
        (words,) = option(render(change(boot=Boot(12, 13, verbose))), "-append")
        assert ("quiet" in words.split()) is not verbose
