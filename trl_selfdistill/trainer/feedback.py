"""What an environment says of a rollout, and whether anybody can say anything."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.utils import logging

from trl_selfdistill.config import SelfDistillConfig
from trl_selfdistill.context.rollout import Rollout

logger = logging.get_logger(__name__)


def check_feedback(args: SelfDistillConfig, reward_funcs: Any, *speakers: Any) -> None:
    """Raise `ValueError` for `context="feedback"` where nothing can give any.

    Args:
        args: the configuration.
        reward_funcs: the user's. A function may speak with `log_extra`; a reward model only gives numbers.
        speakers: what else may: a `rollout_func`, an `environment_factory`, a `context_builder` in place of `context`.
    """
    if args.context != "feedback" or args.feedback_column is not None:
        return
    given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    functions = [f for f in given if f is not None and not isinstance(f, str | nn.Module)]
    if not functions and all(speaker is None for speaker in speakers):
        raise ValueError(
            "context='feedback' shows the teacher what was said of a rollout, but nothing here can say anything. Give "
            "a reward function that calls log_extra('feedback', [...]), a rollout_func that returns a field "
            "'feedback', an environment with an attribute `feedback`, or name a dataset column in feedback_column."
        )


def words_of(environments: Sequence[Any] | None) -> list[Any]:
    """The attribute `feedback` of each environment, `None` for one that has none; empty where there is no environment.

    TRL makes a tool of every public method, so a method of that name is one, and is not asked.
    """
    words = [getattr(environment, "feedback", None) for environment in environments or ()]
    return [None if callable(word) else word for word in words]


class SilenceCheck:
    """Warns once where nothing was said of any rollout of a batch, so that no row has a teacher."""

    def __init__(self, *, active: bool) -> None:
        self._active = active

    def see(self, rollouts: Sequence[Rollout]) -> None:
        if self._active and all(rollout.feedback is None for rollout in rollouts):
            self._active = False
            logger.warning(
                f"context='feedback', but nothing was said of any of these {len(rollouts)} rollouts, so none has a "
                "teacher. Feedback is the environment's attribute `feedback`, a rollout_func's field 'feedback', or "
                "what a reward function gives to log_extra('feedback', [...])."
            )
