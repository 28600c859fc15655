"""What is known of processor architectures, against a library that knows them all."""

import ctypes
import os
import re
from pathlib import Path

import pytest

import orlop
from orlop.linux import architecture
from orlop.linux.architecture import ALL, ARM64, X86_64, Architecture


def resolve(one: Architecture, call: str) -> int:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed")
    library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    return int(library.seccomp_syscall_resolve_name_arch(one.audit, call.encode()))


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.machine)
def test_the_numbers_of_system_calls(one: Architecture) -> None:
    assert one.calls == {name: resolve(one, name) for name in one.calls}


def test_all_know_the_same_calls() -> None:
    assert X86_64.calls.keys() == ARM64.calls.keys()


def test_this_machine_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture.own.cache_clear()
    try:
        assert architecture.own().machine == os.uname().machine
        architecture.own.cache_clear()
        other = os.uname_result(("Linux", "here", "6.1", "1", "vax"))
        monkeypatch.setattr(os, "uname", lambda: other)
        with pytest.raises(NotImplementedError, match="vax"):
            architecture.own()
    finally:
        architecture.own.cache_clear()


LITERAL = re.compile(r"\bx86|amd64|aarch64|arm64|ttyS\d|ttyAMA")
ELSEWHERE = {
    "guest/launch/script.py": "the machine code of one architecture, explained",
    "hypervisor/qemu/settings.py": "the program's name and the distribution's package",
}


def test_architectures_are_named_in_one_place() -> None:
    source = Path(orlop.__file__).parent
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if not path.name.endswith("_pb2.py") and LITERAL.search(path.read_text(encoding="utf-8"))
    }
    assert found - {"linux/architecture.py"} == ELSEWHERE.keys()
