"""For algorithms that need no reward: TRL does not go without one, nor with one rollout per prompt."""

from collections.abc import Callable
from typing import Any

from trl_selfdistill.context.builders import NEEDS_CORRECTNESS


class _One(int):
    """The number 1, where GRPO asks `num_generations < 2`: it compares rollouts, others need not."""

    def __lt__(self, other: int) -> bool:
        return False


def allow_one_rollout(args: Any, resolve: Callable[[], None]) -> None:
    """Call `resolve`, which is GRPO's `__post_init__`, so that it takes `num_generations=1`, too.

    Raises `ValueError` for less than one.
    """
    if args.num_generations < 1:
        raise ValueError(f"num_generations={args.num_generations} must be at least 1.")
    single = args.num_generations == 1
    if single:
        args.num_generations = _One(1)
    resolve()
    if single:
        args.num_generations = 1


def no_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Zero, for every completion."""
    return [0.0] * len(completions)


def rewards_or_none(reward_funcs: Any, args: Any) -> Any:
    """The user's reward functions, or `no_reward` where there are none.

    Raises `ValueError` where the context is a right rollout, and nothing would tell which ones are right.
    """
    if reward_funcs is not None and reward_funcs != []:
        return reward_funcs
    if args.context in NEEDS_CORRECTNESS and args.correctness_reward is None:
        raise ValueError(f"context={args.context!r} needs reward_funcs, which tell what peers are correct.")
    return no_reward
