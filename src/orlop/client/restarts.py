"""When a container that has ended runs again, in the words people write.

CRI has no such word, as in Kubernetes it is the kubelet's work. Who waits for a container runs it again
himself; else the daemon does, which is told by an annotation.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from orlop.errors import InvalidArgument

LONGEST_PAUSE = 60.0


class RestartPolicy(NamedTuple):
    """When a container that has ended runs again. ``most`` times, if that is not None."""

    after_success: bool
    after_failure: bool
    most: int | None = None

    def again(self, code: int, times: int) -> bool:
        """Whether it runs again that has ended with ``code`` and run again ``times`` times."""
        wanted = self.after_failure if code else self.after_success
        return wanted and (self.most is None or times < self.most)

    def wish(self) -> str:
        """The annotation for the daemon, "" for none."""
        return json.dumps(self._asdict()) if self.after_success or self.after_failure else ""


def pause(times: int) -> float:
    """Seconds before the next run: longer each time, so that what fails at once takes nobody's time."""
    return float(min(0.1 * 2 ** min(times, 20), LONGEST_PAUSE))


def parse(text: str) -> RestartPolicy:
    """``no``, ``always``, ``unless-stopped``, ``on-failure`` or ``on-failure:3``. Raises InvalidArgument."""
    kind, colon, most = text.partition(":")
    if colon and (kind != "on-failure" or not (most.isascii() and most.isdecimal() and len(most) < 10)):
        raise InvalidArgument(f"{text}: write for example --restart on-failure:3")
    match kind:
        case "no" | "never":
            return RestartPolicy(after_success=False, after_failure=False)
        case "always" | "unless-stopped":
            return RestartPolicy(after_success=True, after_failure=True)
        case "on-failure":
            return RestartPolicy(after_success=False, after_failure=True, most=int(most) if colon else None)
    raise InvalidArgument(f"{text}: --restart takes no, on-failure[:TIMES], always or unless-stopped")
