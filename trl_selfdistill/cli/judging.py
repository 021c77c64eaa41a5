"""What reward functions say of completions, outside of a training."""

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerState

from trl_selfdistill.trainer.correctness import Correctness, make_correctness, rewards_by_name

Reward = Callable[..., Any]


class Judge:
    """Calls reward functions as TRL's GRPO does, and tells which completions are right.

    Args:
        rewards: the functions. A reward model is none.
        correctness: as `correctness_reward` of a configuration: `None` is the first function.
        threshold: as `correctness_threshold`.

    Raises `ValueError` where `correctness` is not among them.
    """

    def __init__(self, rewards: Sequence[Reward], correctness: Any = None, threshold: float = 1.0) -> None:
        self.rewards = list(rewards)
        self.names = [name_of(reward) for reward in self.rewards]
        wanted = self.names[0] if correctness is None else correctness
        self.correctness: Correctness = make_correctness(wanted, threshold, self.names)

    def values(
        self, rows: Sequence[Mapping[str, Any]], completions: Sequence[Any], ids: Sequence[list[int]]
    ) -> torch.Tensor:
        """The rewards, (completions, functions); NaN where a function does not assess one.

        Raises `ValueError` for a function that does not answer with one number per completion.
        """
        keys = [key for key in rows[0] if key not in ("prompt", "completion", "completion_ids")]
        given = {key: [row[key] for row in rows] for key in keys}
        given |= {"prompts": [row["prompt"] for row in rows], "completions": completions, "completion_ids": ids}
        given |= {"trainer_state": TrainerState(), "log_extra": ignored, "log_metric": ignored}
        columns = []
        for name, reward in zip(self.names, self.rewards, strict=True):
            answer = reward(**given)
            answer = asyncio.run(finished(answer)) if inspect.isawaitable(answer) else answer
            if len(answer) != len(completions):
                raise ValueError(f"{name} gave {len(answer)} rewards for {len(completions)} completions.")
            columns.append([math.nan if value is None else float(value) for value in answer])
        return torch.tensor(columns, dtype=torch.float32).T

    def judge(self, values: torch.Tensor) -> list[bool | None]:
        """Of each row of rewards whether it passes; `None` where it was not assessed."""
        verdicts = [self.correctness.judge(rewards_by_name(row, self.names)) for row in values]
        return [verdict.passed if verdict.assessed else None for verdict in verdicts]


def name_of(reward: Reward) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def ignored(*_: Any) -> None:
    """Rewards may log; an evaluation keeps none of it."""


async def finished(answer: Any) -> Any:
    return await answer


def as_completion(prompt: Any, text: str) -> Any:
    """`text` in the form that a reward function gets it in: messages where the prompt is a conversation."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
