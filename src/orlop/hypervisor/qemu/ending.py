"""Why QEMU stopped a machine for good, in one sentence.

A machine can stop by itself and leave its QEMU alive: the event is ``STOP``, and the state that
``query-status`` then tells says whether somebody stopped it by hand, or whether it will never go on.
"""

from __future__ import annotations

# QAPI, RunState. What is not here goes on some day, or has an event of its own.
_ENDS = {
    "internal-error": "QEMU cannot go on with it",
    "io-error": "a disk of it failed",
    "guest-panicked": "the guest's kernel panicked",
}
_PANIC = "Kernel panic - not syncing: "


def reason(state: str, complaint: str, console: str) -> str:
    """Why a machine in that state will not go on, of whose QEMU the last ``complaint`` is; "" for a state
    that is no end."""
    why = _ENDS.get(state, "")
    if state == "guest-panicked":
        said = console.rpartition(_PANIC)[2].partition("\n")[0].strip() if _PANIC in console else ""
    else:
        said = complaint if why else ""
    return f"{why}: {said}" if said else why
