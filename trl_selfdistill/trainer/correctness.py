"""Which reward tells whether a rollout is correct."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trl_selfdistill.context.builders import resolve_function

Rewards = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one rollout."""

    passed: bool
    assessed: bool
    """Whether there is anything to judge by: a reward function may answer `None` (or NaN)."""


@dataclass(frozen=True, slots=True)
class Correctness:
    """The judge of a run.

    Either the rewards called `names`: a rollout passes when each of them that applies to it, that is not `None`,
    reaches `threshold`. Or a `function` of all rewards by name, which answers True, False, or `None` for not assessed.
    """

    names: tuple[str, ...]
    threshold: float
    function: Callable[..., Any] | None = None

    def judge(self, rewards: Rewards) -> Verdict:
        if self.function is not None:
            answer = self.function(rewards)
            return Verdict(passed=bool(answer), assessed=answer is not None)
        values = [value for name in self.names if (value := rewards[name]) is not None]
        return Verdict(passed=bool(values) and all(v >= self.threshold for v in values), assessed=bool(values))


def make_correctness(wanted: Any, threshold: float, reward_names: list[str]) -> Correctness:
    """The judge that `correctness_reward=wanted` asks for: a name, several, a function or its dotted path, or `None`.

    Raises `ValueError` when there is no such reward.
    """
    if callable(wanted):
        return Correctness((), threshold, wanted)
    if wanted is None:
        if len(reward_names) > 1:
            warnings.warn(
                f"Of the reward functions {reward_names} the first, {reward_names[0]!r}, tells whether a rollout is "
                "correct. Set correctness_reward to choose.",
                stacklevel=2,
            )
        wanted = reward_names[0]
    names = list(wanted) if isinstance(wanted, list | tuple) else [part.strip() for part in str(wanted).split(",")]
    unknown = [name for name in names if name not in reward_names]
    if unknown and len(names) == 1 and "." in names[0]:
        function = resolve_function(
            names[0], field="correctness_reward", names=reward_names, argument="all rewards by name"
        )
        return Correctness((), threshold, function)
    if unknown:
        raise ValueError(
            f"correctness_reward={wanted!r} is not among the reward functions {reward_names}. Name the one "
            "(or several) whose value tells whether a rollout is correct, or give a function of all rewards by name."
        )
    return Correctness(tuple(names), threshold)


def rewards_by_name(values: Tensor, names: list[str]) -> dict[str, float | None]:
    """One rollout's rewards; `None` for NaN, which is how TRL keeps a reward that was not given."""
    return {name: None if value != value else value for name, value in zip(names, values.tolist(), strict=True)}
