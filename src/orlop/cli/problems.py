"""How a command fails: one sentence with the remedy, and an exit code."""

from __future__ import annotations


class CliError(Exception):
    """A command cannot go on. ``exit_code`` is what the shell gets."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
