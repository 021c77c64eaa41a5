"""Whose weights score the completions. Weights only: no maths, no text, no TRL."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from trl_selfdistill.ops import Head, output_head


class Teacher(ABC):
    """Yields the module that scores, with the teacher's weights in place, and puts everything back afterwards."""

    @abstractmethod
    def weights(self, policy: nn.Module) -> AbstractContextManager[nn.Module]: ...

    def own_head(self, model: Any) -> Head | None:
        """The LM head of `model`, the teacher's language model, where it is not the policy's. Ask inside `weights`."""
        return None


class LiveTeacher(Teacher):
    """The policy's current weights."""

    @contextmanager
    def weights(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield policy


class FrozenCopyTeacher(Teacher):
    """Another model, with the weights that the policy had at the start."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @contextmanager
    def weights(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield self.model

    def own_head(self, model: Any) -> Head | None:
        with output_head(model) as head:
            return head


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` in memory, in evaluation mode and without gradients.

    A copy, not a second load from the hub: the policy may have been changed since it was loaded. Patches on the
    instance's `forward` are dropped, since a patch may close over the original.
    """
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module.__dict__.pop("forward", None)
    return twin.requires_grad_(False).eval()


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """No gradient and no dropout inside; every module's own mode is restored, also when the forward raises."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
