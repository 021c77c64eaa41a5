"""From what TRL knows of a batch to its `Rollout`s, and what the batch is taught with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor
from transformers import BatchEncoding

from trl_selfdistill.context.groups import Outcome, make_groups, other_gold
from trl_selfdistill.context.rollout import Context, Rollout, completion_text
from trl_selfdistill.trainer.correctness import Correctness, rewards_by_name


@dataclass(frozen=True, slots=True)
class View:
    """One teacher prompt for each of B rollouts."""

    contexts: list[Context | None]
    prompts: BatchEncoding
    """The collator's output: teacher_prompt_ids, teacher_prompt_mask, has_context and counts."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """The teacher's side of the B rollouts of one process."""

    rollouts: list[Rollout]
    views: dict[str, View]
    row_weights: Float[Tensor, " B"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of the B rollouts of this process when they are rewarded."""

    rows: Sequence[Any]
    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[list[int]]
    golds: Sequence[str | None]
    told: Sequence[str | None]
    """What the reward, the `rollout_func` or the environment said of the completions."""
    rewards: Float[Tensor, "N F"]
    """Of all processes, in global order."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run or a batch has in common."""

    correctness: Correctness
    assesses: bool
    """Whether the rewards are the user's; an algorithm that needs none has a stand-in."""
    feedback_column: str | None
    reward_names: list[str]
    reward_weights: Float[Tensor, " F"]
    end_ids: set[int]
    max_length: int | None
    group_size: int
    seed: str
    """Names the batch."""
    first: int
    """Global index of this process's first rollout."""
    step: int
    keeps_thinking: bool = True
    """Whether the others of a group see the thinking part of a completion."""


def lesson_tensors(lesson: Lesson, device: torch.device) -> dict[str, Tensor]:
    """What the loss must know of the rollouts, (B,) each. TRL shuffles and splits it with the batch."""
    rates = [float("nan") if rollout.pass_rate is None else rollout.pass_rate for rollout in lesson.rollouts]
    return {
        "row": torch.arange(len(lesson.rollouts), device=device),
        "row_weight": lesson.row_weights,
        "correct": torch.tensor([rollout.correct for rollout in lesson.rollouts], device=device),
        "pass_rate": torch.tensor(rates, dtype=torch.float32, device=device),
    }


def is_finished(ids: list[int], end_ids: set[int], max_length: int | None) -> bool:
    """Whether a completion was not cut off: it has an end or pad token last, or is shorter than the limit.

    A rollout that a stop string or a `rollout_func` ended earlier has no end token, and is finished.
    """
    return bool(ids) and (ids[-1] in end_ids or max_length is None or len(ids) < max_length)


def ends_with_tool(completion: Any) -> bool:
    """Whether the last message of a completion is the result of a tool."""
    return isinstance(completion, list) and bool(completion) and completion[-1].get("role") == "tool"


def judged(batch: Batch, setting: Setting, by_name: list[dict[str, float | None]]) -> list[Outcome]:
    """What every process knows of the rollouts of all of them, in global order. `by_name` are their rewards."""
    ended = [is_finished(ids, setting.end_ids, setting.max_length) for ids in batch.completion_ids]
    # What ends with a tool's result was cut off before the model could answer.
    finished = [done and not ends_with_tool(c) for done, c in zip(ended, batch.completions, strict=True)]
    shown = [completion_text(completion, thinking=setting.keeps_thinking) for completion in batch.completions]
    local = list(zip(shown, finished, batch.golds, strict=True))
    outcomes = []
    for (text, done, gold), rewards in zip(gather_object(local), by_name, strict=True):
        verdict = setting.correctness.judge(rewards)
        outcomes.append(Outcome(text, done, verdict.passed, verdict.assessed and setting.assesses, gold))
    return outcomes


def make_rollouts(batch: Batch, setting: Setting) -> list[Rollout]:
    """The rollouts of this process, with what their whole groups know, which may straddle processes."""
    by_name = [rewards_by_name(values, setting.reward_names) for values in batch.rewards]
    outcomes = judged(batch, setting, by_name)
    feedback = feedback_of(batch.rows, setting.feedback_column, batch.told)
    groups = make_groups(outcomes, setting.group_size, setting.seed)
    totals = (batch.rewards * setting.reward_weights.to(batch.rewards.device)).nansum(dim=1)
    totals = totals.masked_fill(batch.rewards.isnan().all(dim=1), torch.nan).tolist()
    rollouts = []
    for i, row in enumerate(batch.rows):
        index = setting.first + i
        group, outcome = groups[index // setting.group_size], outcomes[index]
        rollouts.append(
            Rollout(
                row=row,
                completion=completion_text(batch.completions[i]),
                correct=outcome.correct,
                gold=outcome.gold,
                assessed=outcome.assessed,
                peers=group.others(index, correct=True),
                wrong_peers=group.others(index, correct=False),
                finished_peers=group.others(index),
                other_gold=other_gold(groups, group),
                pass_rate=group.pass_rate,
                group_size=setting.group_size,
                finished=outcome.finished,
                passed=outcome.passed,
                feedback=feedback[i],
                reward=totals[index] if setting.assesses else math.nan,  # a stand-in's zeros are no reward
                rewards=by_name[index],
                prompt=batch.prompts[i],
                step=setting.step,
                seed=group.seed,
                index=index,
                shown=outcome.text,
            )
        )
    return rollouts


def remembering(rollout_func: Callable[..., Any] | None, told: list[Any]) -> Callable[..., Any] | None:
    """`rollout_func`, whose field "feedback" is kept in `told`: what it said of each completion of the batch."""
    if rollout_func is None:
        return None

    def wrapped(prompts: list[Any], trainer: Any) -> Any:
        output = rollout_func(prompts, trainer)
        told[:] = output.get("feedback", [])
        return output

    return wrapped


def feedback_of(rows: Sequence[Any], column: str | None, told: Sequence[Any]) -> list[Any]:
    """Feedback for each row: of the dataset `column` where one is named, else what was `told` of the completions.

    Raises `ValueError` where the named column is not there.
    """
    if column is None:
        return [*told, *[None] * (len(rows) - len(told))]
    if any(column not in row for row in rows):
        raise ValueError(
            f"feedback_column={column!r} is not a column of the dataset, which has {sorted(rows[0])}. Name another "
            "one, or None for what the reward, the rollout_func or the environment says of each completion."
        )
    return [row[column] for row in rows]


def drop_rewards(metrics: dict[str, Any]) -> None:
    """Take out what TRL logs of a reward function that only stands in for one."""
    for name in [*metrics]:
        if name.startswith("rewards/") or name in ("reward", "reward_std", "frac_reward_zero_std"):
            del metrics[name]
