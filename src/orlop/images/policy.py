"""Signature policies, containers-policy.json(5): whether one asks for anything."""

from __future__ import annotations

import json
from pathlib import Path

from orlop.errors import InvalidArgument

DEFAULT_FILES = (Path("/etc/containers/policy.json"), Path.home() / ".config/containers/policy.json")


def restricts(policy: str) -> bool:
    """Whether a policy file asks for more than accepting everything."""
    paths = (Path(policy),) if policy else DEFAULT_FILES
    for path in paths:
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            if policy:
                raise InvalidArgument(f"the policy file {policy} does not exist") from None
            continue
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"the policy file {path} cannot be read: {error}") from error
        return '"insecureAcceptAnything"' not in json.dumps(document.get("default")) or any(
            '"insecureAcceptAnything"' not in json.dumps(rule)
            for scope in document.get("transports", {}).values()
            for rule in scope.values()
        )
    return False
