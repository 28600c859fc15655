"""The rules of the house: which room may import which, and how large anything may grow.

``errors, config, linux, value, wire, tracing`` -> ``guest, host``
-> ``hypervisor, guestos, images, net, storage, rpc, ttrpc, volumes`` -> ``sandbox, tenantnet``
-> ``pods, tenantdns`` -> ``bundle`` -> ``cri`` and other fronts -> ``daemon, client, tenants``
-> ``cli, blocking``.
A room imports only what lies below.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import orlop

SOURCE = Path(orlop.__file__).parent

RANKS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "config", "linux", "value", "wire", "tracing"}),
    frozenset({"guest", "host"}),
    frozenset({"hypervisor", "guestos", "images", "net", "storage", "rpc", "ttrpc", "volumes"}),
    frozenset({"sandbox", "tenantnet"}),
    frozenset({"pods", "tenantdns"}),
    frozenset({"bundle"}),
    frozenset({"cri", "csi", "native", "nri", "oci", "shim"}),
    frozenset({"daemon", "client", "tenants"}),
    frozenset({"cli", "blocking"}),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}

GUEST_RANKS: tuple[frozenset[str], ...] = (
    frozenset({"loop", "paths", "answer"}),
    frozenset({"channel", "devices", "launch", "streams"}),
    frozenset({"machine"}),
    frozenset({"containers"}),
    frozenset({"agent"}),
    frozenset({"warm"}),
    frozenset({"dispatch"}),
    frozenset({"main"}),
)
"""What the guest's room is divided into."""

BOTTOM_ARROWS = {"config": {"errors"}, "tracing": {"errors"}, "wire": {"linux"}}
"""The only imports within the lowest rank."""

MAX_MODULE = 600
MAX_FUNCTION = 60
MAX_FRONT_PAGE = 40
MAX_POSITIONAL = 6
GENERATED = ("_pb2.py", "_pb2_grpc.py")

PROCESS_CALLS = {"fork", "forkpty", "execv", "execve", "execvp", "execvpe", "posix_spawn", "system", "popen"}
RECURSIVE_RM = re.compile(r"\brm\s+(-\S+\s+)*-\w*[rR]")
PROCESS_MODULES = {"subprocess", "multiprocessing", "pty"}


class Module(NamedTuple):
    path: Path
    tree: ast.Module
    lines: int

    @property
    def name(self) -> str:
        return str(self.path.relative_to(SOURCE))

    @property
    def room(self) -> str:
        first = self.path.relative_to(SOURCE).parts[0]
        return first.removesuffix(".py")


def modules() -> Iterator[Module]:
    for path in sorted(SOURCE.rglob("*.py")):
        if not path.name.endswith(GENERATED):
            text = path.read_text(encoding="utf-8")
            yield Module(path, ast.parse(text, filename=str(path)), text.count("\n"))


MODULES = list(modules())


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Every absolute dotted name that the module imports, wherever in it, and the line."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}:{node.lineno}: relative import"
            base = node.module or ""
            if base in ("orlop", "orlop.guest", "orlop.sandbox"):
                for alias in node.names:
                    yield f"{base}.{alias.name}", node.lineno
            else:
                yield base, node.lineno


def rooms_used(module: Module) -> Iterator[tuple[str, int]]:
    for name, line in imports(module):
        parts = name.split(".")
        if parts[0] == "orlop" and len(parts) > 1 and not parts[1].startswith("__"):
            yield parts[1], line


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_every_module_is_in_a_room() -> None:
    unknown = {module.room for module in MODULES} - RANK.keys() - {"__init__", "__main__"}
    assert not unknown, f"not in the order of rooms: {unknown}"


def test_arrows_point_down() -> None:
    wrong = []
    for module in MODULES:
        if module.room.startswith("__"):
            continue
        for used, line in rooms_used(module):
            if used == module.room:
                continue
            allowed = RANK[used] < RANK[module.room] or used in BOTTOM_ARROWS.get(module.room, set())
            if not allowed:
                wrong.append(f"{module.name}:{line}: {module.room} imports {used}")
    assert not wrong, "\n".join(wrong)


def test_the_guests_arrows_point_down() -> None:
    rank = {part: number for number, parts in enumerate(GUEST_RANKS) for part in parts}
    wrong = []
    for module in MODULES:
        inner = module.name.removeprefix("guest/").removesuffix(".py")
        if module.room != "guest" or inner == "__init__":
            continue
        part = inner.split("/")[0]
        for name, line in imports(module):
            package, _, rest = name.partition("orlop.guest.")
            if package or not rest:
                continue
            used = rest.split(".")[0]
            if used != part and rank[used] >= rank[part]:
                wrong.append(f"{module.name}:{line}: {part} imports {used}")
    assert not wrong, "\n".join(wrong)


def test_no_import_goes_round() -> None:
    """Not even one for the type checker alone, or in a function: what goes round cannot be read alone."""
    names = {_dotted(module): module for module in MODULES}
    arrows: dict[str, set[str]] = {}
    for name, module in names.items():
        used = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom):
                base = node.module or ""
                inner = [f"{base}.{alias.name}" for alias in node.names]
                used |= {one if one in names else base for one in inner}
            elif isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
        arrows[name] = (used & names.keys()) - {name}
    left = dict(arrows)
    while leaves := [name for name, used in left.items() if not used & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left, f"these import one another, or what does: {', '.join(sorted(left))}"


def _dotted(module: Module) -> str:
    parts = ("orlop", *module.path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_two_sandboxes_do_not_know_each_other() -> None:
    wrong = []
    for module in MODULES:
        for kind, other in (("vm", "process"), ("process", "vm")):
            if module.name.startswith(f"sandbox/{kind}/"):
                wrong += [
                    f"{module.name}:{line}"
                    for name, line in imports(module)
                    if name.startswith(f"orlop.sandbox.{other}")
                ]
    assert not wrong, "\n".join(wrong)


def test_the_process_sandbox_needs_no_guest() -> None:
    wrong = [
        f"{module.name}:{line}"
        for module in MODULES
        if module.name.startswith("sandbox/process/")
        for used, line in rooms_used(module)
        if used == "guest"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "allowed"),
    [("guest", {"guest", "wire", "linux"}), ("wire", {"wire", "linux"}), ("linux", {"linux"})],
    ids=["guest", "wire", "linux"],
)
def test_the_guest_needs_only_python(room: str, allowed: set[str]) -> None:
    """What runs in the guest imports the standard library, itself, the wire and what Linux itself is."""
    wrong = []
    for module in MODULES:
        if module.room != room:
            continue
        for name, line in imports(module):
            parts = name.split(".")
            fine = parts[1] in allowed if parts[0] == "orlop" else parts[0] in sys.stdlib_module_names
            if not fine:
                wrong.append(f"{module.name}:{line}: {name}")
    assert not wrong, "\n".join(wrong)


def test_children_only_through_their_door() -> None:
    """Only ``host`` and ``guest`` start processes; what enters a jail is a child that becomes another."""
    wrong = []
    for module in MODULES:
        if module.room in ("host", "guest") or module.name == "hypervisor/jail/enter.py":
            continue
        for name, line in imports(module):
            if name.split(".")[0] in PROCESS_MODULES:
                wrong.append(f"{module.name}:{line}: imports {name}")
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            call = (node.value.id, node.attr)
            if call[1].startswith("create_subprocess_") or (call[0] == "os" and call[1] in PROCESS_CALLS):
                wrong.append(f"{module.name}:{node.lineno}: {'.'.join(call)}")
    assert not wrong, "\n".join(wrong)


def test_trees_are_removed_in_one_place() -> None:
    """Only ``linux/removal.py`` knows not to cross a mount."""
    wrong = []
    for module in MODULES:
        if module.name == "linux/removal.py":
            continue
        for node in ast.walk(module.tree):
            name = node.attr if isinstance(node, ast.Attribute) else ""
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if name in ("rmtree", "removedirs") or RECURSIVE_RM.search(text) or text == "rm":
                wrong.append(f"{module.name}:{node.lineno}: {name or text!r}")  # type: ignore[attr-defined]
    assert not wrong, "\n".join(wrong)


def test_each_class_name_stands_for_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        if module.path.name == "blocking.py":  # its names are those of the other client: that is its promise
            continue
        # Programs outside see these names alone, and the plainest are theirs.
        public = orlop.__all__ if module.room == "client" else ()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and node.name not in public:
                places[node.name].append(module.name)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_the_size_of_modules_and_functions() -> None:
    wrong = [f"{module.name}: {module.lines} lines" for module in MODULES if module.lines > MAX_MODULE]
    for module in MODULES:
        for function in functions(module):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > MAX_FUNCTION:
                wrong.append(f"{module.name}:{function.lineno}: {function.name} has {lines} lines")
    assert not wrong, "\n".join(wrong)


def positional(module: Module) -> Iterator[tuple[str, int, int]]:
    """Each function with its line and the number of parameters that may be given by position, but self."""
    methods = {
        id(function)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        for function in node.body
    }
    for function in functions(module):
        decorators = {node.id for node in function.decorator_list if isinstance(node, ast.Name)}
        bound = id(function) in methods and "staticmethod" not in decorators
        taken = len(function.args.posonlyargs) + len(function.args.args) - bound
        yield function.name, function.lineno, taken


def test_functions_take_few_parameters_by_position() -> None:
    """A call with many values in a row cannot be read; what comes after the sixth has a name."""
    wrong = [
        f"{module.name}:{line}: {name} takes {taken}"
        for module in MODULES
        for name, line, taken in positional(module)
        if taken > MAX_POSITIONAL
    ]
    assert not wrong, "\n".join(wrong)


def test_front_pages_hold_no_logic() -> None:
    wrong = []
    for module in MODULES:
        # The package's own page opens the Python client, and imports it only then.
        if module.path.name != "__init__.py" or module.name == "__init__.py":
            continue
        if module.lines > MAX_FRONT_PAGE:
            wrong.append(f"{module.name}: {module.lines} lines")
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                wrong.append(f"{module.name}:{node.lineno}: {node.name}")
    assert not wrong, "\n".join(wrong)


BACKEND_WORDS = re.compile(r"\b(qemu|vmdk|luns?|scsi|bays?|9p\w*|virtio\w*)\b", re.IGNORECASE)
"""What belongs to one hypervisor, or to the devices that it shows its guests."""

KNOWN_PATHS = re.compile(r"/proc/scsi")

OF_A_RELEASE = "sandbox/vm/former.py"
"""Says what version 0.1 said, which had one hypervisor and its words everywhere."""


def test_nobody_but_the_back_end_knows_which_hypervisor_it_is() -> None:
    """Another one is a folder below ``hypervisor`` and a line in the daemon's table.

    The guest's ``devices`` know what the hardware is that a hypervisor shows them, but not whose."""
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = str(path.relative_to(SOURCE))
        if name.endswith(GENERATED) or name.startswith("hypervisor/qemu/") or name == OF_A_RELEASE:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if name == "daemon.py" and line.startswith("HYPERVISORS = "):
                continue
            found = {match.lower() for match in BACKEND_WORDS.findall(KNOWN_PATHS.sub("", line))}
            if name.startswith("guest/devices/"):
                found &= {"qemu", "vmdk"}
            wrong += [f"{name}:{number}: {word}" for word in sorted(found)]
    assert not wrong, "\n".join(wrong)


TASKS_ELSEWHERE = {
    "host/tasks.py": "the door itself",
    "cri/streaming/sessions.py": "watches the connection of the very task that it cancels",
    "cli/images.py": "a progress bar, which ends with its command",
    "cli/run.py": "one command, and the signals that end it",
    "cli/streams.py": "one terminal, which ends with its command",
}
"""Where tasks are started beside the door, and why."""

THREADS_ELSEWHERE = {"cli", "client", "cri", "daemon"}
"""Rooms that make nothing on a thread which somebody else takes back."""

COUNTS = "sandbox/process/meter.py"
"""Counts files on a thread that nobody needs to wait for."""


def test_tasks_have_an_owner_and_threads_are_waited_for() -> None:
    """A task that nobody holds may vanish, and its exception with it; so may one of a failed ``gather``.

    Children of a ``TaskGroup``, by the name ``group``, are owned by it.
    """
    wrong = []
    for module in MODULES:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            call, owner = node.func.attr, ast.unparse(node.func.value)
            loose = call in ("create_task", "ensure_future") and owner != "group"
            if call == "gather" and owner == "asyncio":
                loose = not any(word.arg == "return_exceptions" for word in node.keywords)
            if loose and module.name not in TASKS_ELSEWHERE:
                wrong.append(f"{module.name}:{node.lineno}: {owner}.{call}: see host/tasks.py")
            if call == "to_thread" and module.room not in THREADS_ELSEWHERE and module.name != COUNTS:
                wrong.append(f"{module.name}:{node.lineno}: {owner}.{call}: see host/threads.py")
    assert not wrong, "\n".join(wrong)
