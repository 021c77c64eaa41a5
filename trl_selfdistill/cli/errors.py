"""A user's mistake is answered with one line and exit status 2. Everything else keeps its traceback."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MISTAKE = 2
INTERRUPTED = 130
"""Exit statuses: a mistake, as argparse has it; a run that Ctrl-C stopped, as shells have it."""


class UserError(Exception):
    """A mistake of the user. The message says what to do instead."""


@contextmanager
def as_user_errors() -> Iterator[None]:
    """Errors about values, files and missing packages are the user's in here. To be put around construction only."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise UserError(str(error)) from error


def guarded(run: Callable[[], int]) -> int:
    """The exit status of `run()`. A `UserError` becomes a line on standard error, Ctrl-C a status."""
    try:
        return run()
    except UserError as error:
        # All processes of a launch make the same mistake: the others name themselves.
        rank = os.environ.get("RANK", "0")
        who = "trl-selfdistill" if rank == "0" else f"trl-selfdistill (process {rank})"
        print(f"{who}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return MISTAKE
    except KeyboardInterrupt:
        print("Stopped. What was done since the last checkpoint is not saved.", file=sys.stderr, flush=True)
        return INTERRUPTED
