"""The order of the prompts in a run that goes on in a later epoch.

TRL's sampler draws an order for each epoch from a generator of its own. transformers begins a resumed run with the
epoch that it stopped in, and the generator begins anew: without this file, epoch 3 would get the order of epoch 1.
"""

from typing import Any

import torch
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler


class DrawPassedEpochs(TrainerCallback):
    """Draws the orders of the epochs that a resumed run has behind it."""

    def __init__(self) -> None:
        self.sampler: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.sampler, RepeatSampler) and self.sampler.shuffle:
            for _ in range(passed_epochs(state.epoch)):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)


def passed_epochs(epoch: float | None) -> int:
    """The whole epochs in a trainer's state, which counts in fractions: 1.9999999 are two."""
    return int((epoch or 0.0) + 1e-6)
