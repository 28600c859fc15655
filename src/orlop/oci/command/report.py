"""What the command says when something goes wrong: on its standard error, and in the log it was given."""

from __future__ import annotations

import json
import os
import sys
import time


def problem(message: str, log: str, kind: str) -> None:
    """One sentence, in the form that callers of runc read; ``kind`` of the file is "json" or "text"."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = f"time={json.dumps(now)} level=error msg={json.dumps(message, ensure_ascii=False)}\n"
    line = json.dumps({"level": "error", "msg": message, "time": now}) + "\n" if kind == "json" else text
    if log:
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            sys.stderr.write(f"orlop-oci: the log {log} cannot be written: {error.strerror}\n")
    sys.stderr.write(line if kind == "json" and not log else text)
