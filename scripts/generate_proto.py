"""Generate the ``_pb2.py`` of each ``.proto``, and its type stub.

    python scripts/generate_proto.py [DIRECTORY]

Needs grpcio-tools and mypy-protobuf (the extra "dev"). DIRECTORY is where the package's
``orlop`` goes, ``src`` unless named. The generated code refuses an older protobuf
runtime than the generator's own: raise the requirement in pyproject.toml along with it.
"""

import importlib.resources
import os
import sys
from pathlib import Path

from grpc_tools import protoc

SOURCE = Path(__file__).resolve().parent.parent / "src"
PROTOS = (
    "orlop/cri/api/runtime_v1.proto",
    "orlop/csi/api/csi_v1.proto",
    "orlop/csi/api/registration.proto",
    "orlop/native/api/native_v1.proto",
    "orlop/nri/api/nri_v1alpha1.proto",
    "orlop/shim/api/door.proto",
    "orlop/shim/api/events.proto",
    "orlop/shim/api/forward.proto",
    "orlop/shim/api/metrics.proto",
    "orlop/shim/api/pod.proto",
    "orlop/shim/api/process.proto",
    "orlop/shim/api/sandbox.proto",
    "orlop/shim/api/task_v2.proto",
    "orlop/shim/api/task_v3.proto",
    "orlop/shim/api/types.proto",
    "orlop/ttrpc/messages.proto",
)


def generate(target: Path) -> int:
    """Write all files below ``target``; returns protoc's exit code."""
    # protoc looks for the mypy plug-in on PATH, where a virtual environment need not be.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return int(
        protoc.main(
            [
                "protoc",
                f"--proto_path={SOURCE}",
                f"--proto_path={importlib.resources.files('grpc_tools') / '_proto'}",
                f"--python_out={target}",
                f"--mypy_out=quiet:{target}",
                *PROTOS,
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(generate(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE))
