"""How a command runs: its failure is one sentence."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from orlop.cli.problems import CliError
from orlop.errors import OrlopError

T = TypeVar("T")


def run_async(
    job: Callable[[], Coroutine[Any, Any, T]], *, code: Callable[[OrlopError], int] = lambda error: 1
) -> T:
    """Run a command's coroutine, with failed calls explained; ``code`` gives the exit code of each."""
    import asyncio

    try:
        return asyncio.run(job())
    except OrlopError as error:
        raise CliError(str(error), exit_code=code(error)) from error
    except OSError as error:
        if error.filename is None:  # a pipe, say, that is closed
            raise
        raise CliError(f"{error.filename}: {error.strerror}") from error
    except KeyboardInterrupt:
        raise CliError("interrupted", exit_code=130) from None
