"""The command line as argparse reads it, with help, and with words for what is wrong."""

from __future__ import annotations

import argparse

from orlop.errors import InvalidArgument
from orlop.oci.command.options import GLOBAL, NUMBER, NUMBERS, SWITCH, TEXTS, VERBS, Option, Options

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_WIDTH = 100


class _Formatter(argparse.HelpFormatter):
    """One that does not look how wide the terminal is: argparse makes one for each option, shown or not."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidArgument(f"{message} (see '{self.prog} --help')")


def parse(arguments: list[str]) -> Options:
    """What was asked for. Raises InvalidArgument; ends the program after --help."""
    parser = _Parser(
        prog="orlop-oci",
        allow_abbrev=False,
        description="Runs containers of the OCI runtime specification in virtual machines, by orlopd.",
        formatter_class=_Formatter,
    )
    _add(parser, GLOBAL)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)
    # Every call would pay for the options of all commands: only those are made that may be meant.
    meant = [name for name in VERBS if name in arguments]
    if not meant or not {"-h", "--help"}.isdisjoint(arguments):
        meant = list(VERBS)
    for name in meant:
        verb = VERBS[name]
        shown: dict[str, Any] = {"help": verb.text} if verb.text else {}
        made = verbs.add_parser(name, allow_abbrev=False, formatter_class=_Formatter, **shown)
        if verb.of_one:
            made.add_argument("id", metavar="CONTAINER")
        _add(made, verb.options)
        if verb.more is not None:
            made.add_argument(verb.more[0], nargs="?", default=verb.more[1])
        if verb.rest:
            made.add_argument(verb.rest, nargs=argparse.REMAINDER, metavar="ARGUMENT")
    return parser.parse_args(arguments, Options())


def _add(parser: argparse.ArgumentParser, options: tuple[Option, ...]) -> None:
    for option in options:
        more: dict[str, Any] = {"default": option.default(), "help": option.text or argparse.SUPPRESS}
        if option.kind == SWITCH:
            more["action"] = "store_true"
        else:
            more["action"] = "append" if option.kind in (TEXTS, NUMBERS) else "store"
            more["choices"] = option.choices or None
            if option.kind in (NUMBER, NUMBERS):
                more["type"] = int
        parser.add_argument(*option.names, **more)
