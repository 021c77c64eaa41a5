"""What a batch of rollouts is taught with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BatchEncoding

from trl_selfdistill.context.rollout import Rollout, group_peers


@dataclass(frozen=True, slots=True)
class Lesson:
    """The teacher's side of B rollouts."""

    rollouts: list[Rollout]
    contexts: list[str | None]
    prompts: BatchEncoding
    """The collator's output: teacher_prompt_ids, teacher_prompt_mask, has_context and counts."""


def make_rollouts(
    rows: Sequence[Mapping[str, Any]],
    golds: Sequence[str | None],
    texts: Sequence[str],
    correct: Sequence[bool],
    assessed: Sequence[bool],
    *,
    group_size: int,
    seed: str,
    first: int,
) -> list[Rollout]:
    """The rollouts of one process, with peers from their whole groups, which may straddle processes.

    Args:
        rows: dataset rows of this process.
        golds: their gold solutions.
        texts: completions of all processes, in global order.
        correct: whether each of them is right and finished.
        assessed: whether each of them has a correctness reward.
        group_size: rollouts a prompt.
        seed: names the batch.
        first: global index of this process's first rollout.
    """
    peers = group_peers(texts, correct, group_size, seed)
    return [
        Rollout(row, texts[n], correct=correct[n], gold=gold, assessed=assessed[n], peers=peers[n])
        for n, (row, gold) in enumerate(zip(rows, golds, strict=True), start=first)
    ]
