"""One sampled completion and what is known of it. Plain Python: no torch, no tokenizer, no trainer."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion y and all that a context builder may look at."""

    row: Mapping[str, Any]
    """The dataset row, with every column."""
    completion: str
    """The completion as text, thinking part included, special tokens removed."""
    correct: bool
    """Raw correctness (see `correctness_reward`), never the shaped total reward. Truncated rollouts are not correct."""
    gold: str | None = None
    """The row's privileged column, `None` where the row or the dataset has none."""
    assessed: bool = True
    """Whether there is a correctness reward for this rollout: a reward function may answer `None` (or NaN)."""
    peers: tuple[str, ...] = ()
    """The correct completions of the same group, never this rollout itself, in a seeded random order."""


def group_peers(
    completions: Sequence[str], eligible: Sequence[bool], group_size: int, seed: str
) -> list[tuple[str, ...]]:
    """For each rollout the eligible completions of its own group without itself, in a random order.

    Groups are consecutive runs of `group_size`. The order depends on `seed` and the rollout's global index alone, so
    any number of processes chooses alike. Empty completions are never peers: they tell the teacher nothing.

    Raises `ValueError` when the rollouts do not fill whole groups.
    """
    if len(completions) % group_size:
        raise ValueError(f"{len(completions)} rollouts do not fill groups of {group_size}.")
    peers = []
    for index in range(len(completions)):
        start = index - index % group_size
        others = [i for i in range(start, start + group_size) if i != index and eligible[i] and completions[i].strip()]
        random.Random(f"{seed}/{index}").shuffle(others)
        peers.append(tuple(completions[i] for i in others))
    return peers


def completion_text(completion: str | list[dict[str, Any]], *, tool_results: bool = True) -> str:
    """A completion as text: itself, or the contents of its messages (all turns of a tool run), thinking included."""
    if isinstance(completion, str):
        return completion
    messages = [message for message in completion if tool_results or message.get("role") != "tool"]
    return "\n".join(part for message in messages for part in _message_parts(message))


def _message_parts(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content") or ""
    if not isinstance(content, str):  # content blocks: [{"type": "text", "text": ...}, {"type": "image", ...}]
        content = "".join(block.get("text", "") for block in content)
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls") or []]
    thinking = message.get("reasoning_content") or message.get("thinking") or ""
    return [part for part in (thinking, content, *calls) if part]
