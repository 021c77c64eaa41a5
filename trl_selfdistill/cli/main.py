"""`trl-selfdistill COMMAND ...`. Only light imports here: `--help` answers at once."""

import importlib
import sys

import trl_selfdistill
from trl_selfdistill.cli.commands import ALGORITHMS, TOOLS, algorithm_help, overview
from trl_selfdistill.cli.errors import UserError, guarded
from trl_selfdistill.context.inputs import did_you_mean

HELP = ("-h", "--help")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process). Its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    return guarded(lambda: dispatch(list(arguments)))


def dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in HELP:
        print(overview())
        return 0
    if argv[0] == "--version":
        print(trl_selfdistill.__version__)
        return 0
    command, *rest = argv
    if command in TOOLS:
        return importlib.import_module(TOOLS[command][0]).main(rest)
    if command not in ALGORITHMS:
        names = sorted([*ALGORITHMS, *TOOLS])
        raise UserError(f"unknown command {command!r}.{did_you_mean(command, names)} There are: {', '.join(names)}.")
    if any(argument in HELP for argument in rest):
        print(algorithm_help(command))
        return 0
    return importlib.import_module("trl_selfdistill.cli.launch").main(command, rest)
