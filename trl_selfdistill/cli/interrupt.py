"""Ctrl-C ends a run after the step in hand, with a checkpoint from which it goes on exactly."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback

NOTICE = b"\nStopping after this batch of rollouts, with a checkpoint. Ctrl-C again stops at once, without one.\n"
SAME_PRESS = 1.0
"""Seconds within which a second signal is the same press: a terminal and a launcher may both send one."""


class StopOnInterrupt(TrainerCallback):
    """Saves and stops at the first step, after a SIGINT, that ends a batch of rollouts.

    TRL draws new rollouts on resume, so a run that stopped inside a batch would not go on where it stopped.
    """

    def __init__(self) -> None:
        self.stopped_at: int | None = None
        """The step after which the run was stopped."""
        self._asked: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGINT in here. A second one raises `KeyboardInterrupt`."""
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_signal(self, *_: Any) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
            if os.environ.get("RANK", "0") == "0":
                os.write(2, NOTICE)  # `print` may be in use by what was interrupted
        elif now - self._asked > SAME_PRESS:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = self._asked is not None
        if PartialState().num_processes > 1:  # a signal does not reach all processes in the same step
            presses: Any = reduce(torch.tensor(float(asked), device=args.device), "sum")
            asked = bool(presses > 0)
        batch = args.steps_per_generation * args.num_iterations
        ends_batch = state.global_step * args.gradient_accumulation_steps % batch == 0
        if asked and ends_batch and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            self.stopped_at = state.global_step
