"""The system calls that QEMU has: those of an emulator that was given all that it uses, and no others.

The list is that of QEMU 7.2 and 10.0 as Debian builds them, over the life of a pod's machine. What is not on
it fails with EPERM, as it does on a host that forbids it; what no QEMU has ever called, and who has taken one
over would, ends the process. Names that an architecture does not have are passed over.
"""

from __future__ import annotations

import errno
from functools import lru_cache
from typing import Literal

from orlop.host.seccomp import Argument, CallRule, Profile, compile_profile
from orlop.hypervisor.jail.spawn import ENTRANCE
from orlop.linux import architecture, syscalls

Guard = Literal["enforce", "log", "off"]

_PROGRAM = """
arch_prctl brk clock_getres clock_gettime clock_nanosleep exit exit_group futex futex_waitv getcpu getegid
geteuid getgid getpid getppid getrandom getresgid getresuid getrusage gettid gettimeofday getuid madvise
membarrier mincore mmap mprotect mremap msync munmap nanosleep restart_syscall rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sched_getaffinity
sched_get_priority_max sched_get_priority_min sched_getparam sched_getscheduler sched_yield
set_robust_list set_tid_address sigaltstack signalfd4 sysinfo tgkill time times timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
timerfd_settime uname
"""
_DESCRIPTORS = """
close copy_file_range dup dup2 dup3 epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2
fadvise64 fcntl fdatasync flock fstat fstatfs fsync ftruncate lseek pipe2 poll ppoll pread64
preadv preadv2 pselect6 pwrite64 pwritev pwritev2 read readv select sync_file_range syncfs write writev
"""
# On the sockets that it was given and those accepted from them: it can make none.
_SOCKETS = """
accept accept4 getpeername getsockname getsockopt listen recvfrom recvmsg sendmsg sendto shutdown
"""
# Below its own root, which is all that it sees; its file server needs most of them.
_FILES = """
access chmod faccessat faccessat2 fchdir fchmod fchmodat fchmodat2 fchown fchownat fgetxattr flistxattr
fremovexattr fsetxattr getcwd getdents64 getxattr lchown lgetxattr link linkat listxattr llistxattr
lremovexattr lsetxattr lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2 readlink
readlinkat removexattr rename renameat renameat2 rmdir setxattr stat statfs statx symlink symlinkat
truncate umask unlink unlinkat utimensat
"""
_NEVER = """
add_key bpf chroot delete_module execve finit_module fsconfig fsmount fsopen fspick init_module kcmp
kexec_file_load kexec_load keyctl mount mount_setattr move_mount open_by_handle_at open_tree
perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace reboot
request_key setns swapoff swapon umount umount2 unshare userfaultfd
"""

_THREAD = syscalls.CLONE_VM | syscalls.CLONE_SIGHAND | syscalls.CLONE_THREAD
_NOT_A_THREAD = syscalls.CLONE_PTRACE | syscalls.CLONE_PARENT | syscalls.CLONE_NEW
"""Flags of clone(2)."""
_PRCTL = (
    15, 16,  # PR_SET_NAME, PR_GET_NAME: of its threads
    23,  # PR_CAPBSET_READ
    29,  # PR_SET_TIMERSLACK
    33,  # PR_MCE_KILL: memory errors go to the guest
    0x53564D41,  # PR_SET_VMA: names of its memory
)  # fmt: skip
_IOCTL = (
    0x541B, 0x5421, 0x5401,  # FIONREAD, FIONBIO, TCGETS
    0x800454CF, 0x800454D2, 0x400454D0, 0x400454D4,  # TUNGETFEATURES, -GETIFF, -SETOFFLOAD, -SETSNDBUF
    0x800454D7, 0x400454D8, 0x400454DC, 0x400454DE,  # TUNGETVNETHDRSZ, -SETVNETHDRSZ, -SETVNETLE, -BE
    0x800454E0,  # TUNSETSTEERINGEBPF: it takes a program away, and can have none to put there
    0x1268, 0x127B, 0x80081272,  # BLKSSZGET, BLKPBSZGET, BLKGETSIZE64
    0x125E, 0x1267,  # BLKROGET, BLKSECTGET: of a block device that it was given
    0x1277, 0x127C, 0x127F,  # BLKDISCARD, BLKDISCARDZEROES, BLKZEROOUT: what the guest frees in it
    0x80087601, 0x80086601,  # FS_IOC_GETVERSION, FS_IOC_GETFLAGS
    0x800C581E, 0x801C581F,  # XFS_IOC_DIOINFO, FS_IOC_FSGETXATTR
)  # fmt: skip
_FALLOCATE = (0, 3, 16)
"""Modes of fallocate(2): fill, PUNCH_HOLE with KEEP_SIZE, ZERO_RANGE. KEEP_SIZE alone would take room behind
a file's end, where no limit of its size counts."""
_KVM = 0xAE00
"""The type of all ioctls of linux/kvm.h."""
_WORD = 0xFFFFFFFF
"""What the kernel looks at of a flag or a request; the rest of the argument is the caller's to choose."""


@lru_cache
def program(guard: Guard, *, kvm: bool) -> bytes:
    """The filter, for a machine with KVM or without; with "log" it forbids nothing, and the kernel's log
    tells of each call that is not on the list. Empty for "off".

    Raises FailedPrecondition without libseccomp."""
    if guard == "off":
        return b""
    own = architecture.own().seccomp[:1]
    rules, default = _allowed(kvm=kvm), "SCMP_ACT_LOG"
    if guard == "enforce":
        rules, default = (*rules, *_refused()), "SCMP_ACT_ERRNO"
    profile = Profile(default_action=default, architectures=own, syscalls=rules)
    return compile_profile(profile, "of QEMU").program


def _allowed(*, kvm: bool) -> tuple[CallRule, ...]:
    names = " ".join((_PROGRAM, _DESCRIPTORS, _SOCKETS, _FILES)).split()
    # By this the jail becomes QEMU; it can never have a descriptor of that number again.
    entrance = (Argument(0, ENTRANCE, "SCMP_CMP_EQ"), Argument(4, syscalls.AT_EMPTY_PATH, "SCMP_CMP_EQ"))
    threads = Argument(0, _THREAD | _NOT_A_THREAD, "SCMP_CMP_MASKED_EQ", _THREAD)
    requests = [_is(1, request) for request in _IOCTL]
    if kvm:
        requests.append(Argument(1, 0xFF00, "SCMP_CMP_MASKED_EQ", _KVM))
    return (
        CallRule(action="SCMP_ACT_ALLOW", names=tuple(names)),
        CallRule(action="SCMP_ACT_ALLOW", names=("execveat",), args=entrance),
        CallRule(action="SCMP_ACT_ALLOW", names=("clone",), args=(threads,)),
        CallRule(
            action="SCMP_ACT_ALLOW", names=("fallocate",), args=tuple(_is(1, mode) for mode in _FALLOCATE)
        ),
        CallRule(action="SCMP_ACT_ALLOW", names=("prctl",), args=tuple(_is(0, what) for what in _PRCTL)),
        CallRule(action="SCMP_ACT_ALLOW", names=("ioctl",), args=tuple(requests)),
        # To ask for a limit, not to set one.
        CallRule(action="SCMP_ACT_ALLOW", names=("prlimit64",), args=(Argument(2, 0, "SCMP_CMP_EQ"),)),
    )


def _refused() -> tuple[CallRule, ...]:
    return (
        CallRule(action="SCMP_ACT_KILL_PROCESS", names=tuple(_NEVER.split())),
        # Its flags are behind a pointer; libraries take this answer as "use clone".
        CallRule(action="SCMP_ACT_ERRNO", names=("clone3",), errno_ret=errno.ENOSYS),
    )


def _is(index: int, value: int) -> Argument:
    return Argument(index, _WORD, "SCMP_CMP_MASKED_EQ", value)
