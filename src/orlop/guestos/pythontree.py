"""The guest's Python: interpreter, the part of its library that the agent uses, and the agent.

Everything is compiled by the very interpreter that will run it, started from the unpacked packages,
and only the byte code is kept. What the agent uses is found by asking: the interpreter imports every
module that the agent's source names anywhere, and says which files it loaded.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import orlop
from orlop.errors import FailedPrecondition, NotFound
from orlop.host import process, threads
from orlop.linux import architecture
from orlop.linux.removal import remove_tree

# Loaded by the library itself behind a caller's back.
_ALWAYS = ("traceback", "linecache", "encodings.idna", "encodings.latin_1", "encodings.ascii", "ctypes.util")
_AGENT_PACKAGES = ("linux", "wire", "guest")

_FIND = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
print(json.dumps(sorted(
    module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)
)))
"""

_COMPILE = """
import json, py_compile, sys
for source, target, shown, level in json.loads(sys.stdin.read()):
    py_compile.compile(
        source, target, shown, doraise=True, optimize=level,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
"""


def agent_sources(root: Path | None = None) -> dict[str, Path]:
    """The agent's source files by their path below ``orlop/``: the package of this very program."""
    base = root or Path(orlop.__file__).parent
    files = [base / "__init__.py"]
    for package in _AGENT_PACKAGES:
        files += sorted((base / package).rglob("*.py"))
    if base / "guest" / "main.py" not in files:
        raise NotFound(f"the agent's source {base / 'guest' / 'main.py'} does not exist")
    return {path.relative_to(base).as_posix(): path for path in files}


def agent_digest(sources: dict[str, Path]) -> str:
    """A digest over the names and contents of the agent's files."""
    digest = hashlib.sha256()
    for name, path in sources.items():
        data = path.read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def imports_of(sources: dict[str, Path]) -> list[str]:
    """All absolute module names that the sources import when they run, and the sources' own."""
    names: set[str] = set()
    for relative, path in sources.items():
        parts = ["orlop", *relative.removesuffix(".py").split("/")]
        names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        tree = ast.parse(path.read_bytes(), str(path))
        tree.body = [node for node in tree.body if not _for_type_checkers(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module)
    return sorted(names)


def _for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


class Interpreter:
    """The unpacked interpreter below ``unpacked``, run in place by its own dynamic loader."""

    def __init__(self, unpacked: Path, version: str) -> None:
        self.unpacked = unpacked
        self.version = version
        self.library = unpacked / "usr/lib" / f"python{version}"
        self.binary = unpacked / "usr/bin" / f"python{version}"

    def shared_library(self, name: str) -> Path:
        """A shared library of the unpacked packages. Raises NotFound."""
        return self._first(directory / name for directory in self._libraries)

    @property
    def loader(self) -> Path:
        """The dynamic loader of the unpacked packages. Raises NotFound."""
        name = architecture.own().loader
        return self._first(self.unpacked / place for place in (name, f"usr/{name}"))

    @property
    def _libraries(self) -> list[Path]:
        triplet = architecture.own().triplet
        return [self.unpacked / f"usr/lib/{triplet}", self.unpacked / f"lib/{triplet}"]

    def _first(self, places: Iterable[Path]) -> Path:
        tried = list(places)
        for path in tried:
            if path.exists():
                return path
        raise NotFound(f"the unpacked packages have no {tried[-1].relative_to(self.unpacked)}")

    async def run(self, program: str, *arguments: str, data: bytes = b"") -> bytes:
        """Run ``program`` and return what it wrote."""
        paths = ":".join(map(str, self._libraries))
        argv: list[process.Argument] = [self.loader, "--library-path", paths]
        done = await process.run(
            [*argv, self.binary, "-S", "-B", "-c", program, *arguments],
            env={"PYTHONHOME": str(self.unpacked / "usr"), "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
            input=data,
            timeout=300,
        )
        return done.stdout

    async def files_for(self, modules: Sequence[str], agent: Path) -> list[Path]:
        """The library's files, relative to it, that importing ``modules`` loads.

        ``agent`` is the directory with the package ``orlop``."""
        answer = await self.run(_FIND, str(agent), json.dumps([*modules, *_ALWAYS]))
        files = [Path(name) for name in json.loads(answer)]
        return [path.relative_to(self.library) for path in files if path.is_relative_to(self.library)]

    async def compile(self, files: Iterable[tuple[Path, Path, str, int]]) -> None:
        """Compile (source, target, name to show, optimisation level) to byte code without times."""
        jobs = [(str(source), str(target), shown, level) for source, target, shown, level in files]
        await self.run(_COMPILE, data=json.dumps(jobs).encode())


async def install_agent(interpreter: Interpreter, sources: dict[str, Path], root: Path) -> None:
    """Put the agent and the part of the library that it uses below the root file system ``root``.

    Raises FailedPrecondition when the agent does not import there.
    """
    agent = root.with_name(root.name + ".agent")
    try:
        for relative, path in sources.items():
            copy = agent / "orlop" / relative
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        try:
            used = await interpreter.files_for(imports_of(sources), agent)
        except process.ProcessFailed as error:
            raise FailedPrecondition(f"the agent does not run in the guest's Python: {error}") from error
        await _compile_all(interpreter, sources, used, root)
    finally:
        await threads.call(remove_tree, agent)


async def _compile_all(
    interpreter: Interpreter, sources: dict[str, Path], used: Iterable[Path], root: Path
) -> None:
    library = root / "usr/lib" / interpreter.library.name
    jobs: list[tuple[Path, Path, str, int]] = []
    for relative in sorted({*used, *_minimal(interpreter)}):
        target = library / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        source = interpreter.library / relative
        if relative.suffix == ".py":
            # Doc strings of the library would only cost memory.
            jobs.append(
                (source, target.with_suffix(".pyc"), f"/usr/lib/{interpreter.library.name}/{relative}", 2)
            )
        else:
            shutil.copyfile(source, target)
            target.chmod(0o755)
    for name, path in sources.items():
        target = (root / "usr/lib/orlop/orlop" / name).with_suffix(".pyc")
        target.parent.mkdir(parents=True, exist_ok=True)
        jobs.append((path, target, f"orlop/{name}", 0))
    await interpreter.compile(jobs)


def _minimal(interpreter: Interpreter) -> list[Path]:
    """The encodings that names of files and hosts may need, whoever asks for them."""
    names = ("utf_8", "ascii", "latin_1", "idna", "unicode_escape", "raw_unicode_escape", "punycode")
    return [Path("encodings") / f"{name}.py" for name in names]
