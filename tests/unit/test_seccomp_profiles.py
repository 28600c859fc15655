"""System-call filters: what they let through, tried on the kernel; what profiles are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument, NotFound
from orlop.host.seccomp import Filter
from orlop.sandbox import seccomp
from orlop.sandbox.spec import Seccomp, SeccompMode

DEFAULT = Seccomp(mode=SeccompMode.RUNTIME_DEFAULT)

PROBE = r"""
import ctypes, os, struct, sys
program = sys.stdin.buffer.read()
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))
assert libc.prctl(38, 1, 0, 0, 0) == 0
fprog = Program(len(program) // 8, program)
assert libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0, ctypes.get_errno()
for call in sys.argv[1:]:
    numbers = [int(part) for part in call.split(",")]
    ctypes.set_errno(0)
    libc.syscall(*[ctypes.c_long(n) for n in numbers])
    print(ctypes.get_errno())
"""
GETPID, SOCKET, PERSONALITY, CLONE3, KEYCTL, REBOOT, UNSHARE, MOUNT = 39, 41, 135, 435, 250, 169, 272, 165
AF_INET, AF_ALG, AF_VSOCK = 2, 38, 40
EPERM, ENOSYS, EFAULT, EINVAL = 1, 38, 14, 22


def _try(program: bytes, *calls: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *calls], input=program, capture_output=True, check=True, timeout=30
    )
    return [int(line) for line in done.stdout.split()]


def test_default_profile_on_the_kernel() -> None:
    found = seccomp.compile_bpf(DEFAULT, capabilities=("CHOWN",))
    assert found.program
    assert len(found.program) % 8 == 0
    errors = _try(
        found.program,
        f"{GETPID}",
        f"{SOCKET},{AF_INET},1,0",
        f"{SOCKET},{AF_ALG},5,0",
        f"{SOCKET},{AF_VSOCK},1,0",
        f"{PERSONALITY},{0xFFFFFFFF}",
        f"{PERSONALITY},{0x40000}",
        f"{CLONE3},0,0",
        f"{KEYCTL},0,0",
        f"{REBOOT},0,0,0",
        f"{UNSHARE},{0x10000000}",
        "1000,0",
    )
    assert errors == [0, 0, EPERM, EPERM, 0, EPERM, ENOSYS, EPERM, EPERM, EPERM, ENOSYS]


def test_capabilities_widen_the_default_profile() -> None:
    found = seccomp.compile_bpf(DEFAULT, capabilities=("SYS_ADMIN", "SYS_BOOT"))
    clone3, mount = _try(found.program, f"{CLONE3},0,0", f"{MOUNT},0,0,0,0,0")
    assert clone3 == EINVAL
    assert mount != ENOSYS
    assert seccomp.compile_bpf(DEFAULT, capabilities=("SYS_BOOT", "SYS_ADMIN")) is found


def test_unconfined_is_no_filter() -> None:
    assert seccomp.compile_bpf(Seccomp(), capabilities=()) == Filter()
    assert seccomp.oci_seccomp(Seccomp(), capabilities=()) is None


def _localhost(tmp_path: Path, document: object) -> Seccomp:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    return Seccomp(mode=SeccompMode.LOCALHOST, path=str(path))


def test_localhost_profile_on_the_kernel(tmp_path: Path) -> None:
    choice = _localhost(
        tmp_path,
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["getpid", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
                {"name": "keyctl", "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {
                    "names": ["reboot"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 7,
                    "includes": {"arches": ["arm"]},
                },
                {"names": ["getppid"], "action": "SCMP_ACT_ALLOW"},
            ],
        },
    )
    found = seccomp.compile_bpf(choice, capabilities=())
    assert found.flags == 2
    assert _try(found.program, f"{GETPID}", f"{KEYCTL},999,0", f"{REBOOT},0,0,0") == [99, EPERM, EINVAL]
    trusted = seccomp.compile_bpf(choice, capabilities=("SYS_ADMIN",))
    assert _try(trusted.program, f"{KEYCTL},999,0")[0] not in (0, EPERM)
    document = seccomp.oci_seccomp(choice, capabilities=())
    assert document is not None
    assert document["syscalls"][1]["names"] == ["keyctl"]


def test_profile_is_read_again_when_it_changed(tmp_path: Path) -> None:
    choice = _localhost(tmp_path, {"defaultAction": "SCMP_ACT_ALLOW"})
    first = seccomp.compile_bpf(choice, capabilities=())
    _localhost(
        tmp_path,
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getpid"], "action": "SCMP_ACT_KILL"}]},
    )
    assert seccomp.compile_bpf(choice, capabilities=()) != first


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        ({}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "SCMP_ACT_NOTIFY"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}, "flag 'X'"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "Y"}]}, "'Y'"),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {
                        "names": ["read"],
                        "action": "SCMP_ACT_KILL",
                        "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}],
                    }
                ],
            },
            "argument 9",
        ),
    ],
)
def test_unusable_profiles_are_refused(tmp_path: Path, document: object, cause: str) -> None:
    choice = _localhost(tmp_path, document)
    with pytest.raises(InvalidArgument, match=cause) as caught:
        seccomp.compile_bpf(choice, capabilities=())
    assert "profile.json" in str(caught.value)


def test_missing_profile_is_named(tmp_path: Path) -> None:
    choice = Seccomp(mode=SeccompMode.LOCALHOST, path=str(tmp_path / "none.json"))
    with pytest.raises(NotFound, match=r"none\.json"):
        seccomp.compile_bpf(choice, capabilities=())
    with pytest.raises(NotFound, match=r"none\.json"):
        seccomp.oci_seccomp(choice, capabilities=())


JSON = st.recursive(
    st.none() | st.integers() | st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_KILL", "read", "SCMP_CMP_EQ"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["names", "action", "args", "index", "value", "op", "caps", "includes", "name"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(st.fixed_dictionaries({"defaultAction": JSON, "syscalls": JSON}))
def test_any_document_is_understood_or_refused(document: object) -> None:
    try:
        seccomp.parse(json.dumps(document).encode(), "x", ())
    except InvalidArgument as error:
        assert str(error).startswith("seccomp profile x")
