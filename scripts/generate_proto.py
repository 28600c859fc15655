"""Generate ``runtime_v1_pb2.py`` and its type stub from ``runtime_v1.proto``.

    python scripts/generate_proto.py [DIRECTORY]

Needs grpcio-tools and mypy-protobuf (the extra "dev"). DIRECTORY is where the package's
``orlop/cri/api`` goes, ``src`` unless named. The generated code refuses an older protobuf
runtime than the generator's own: raise the requirement in pyproject.toml along with it.
"""

import os
import sys
from pathlib import Path

from grpc_tools import protoc

SOURCE = Path(__file__).resolve().parent.parent / "src"
PROTO = "orlop/cri/api/runtime_v1.proto"


def generate(target: Path) -> int:
    """Write both files below ``target``; returns protoc's exit code."""
    # protoc looks for the mypy plug-in on PATH, where a virtual environment need not be.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return int(
        protoc.main(
            [
                "protoc",
                f"--proto_path={SOURCE}",
                f"--python_out={target}",
                f"--mypy_out=quiet:{target}",
                PROTO,
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(generate(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE))
