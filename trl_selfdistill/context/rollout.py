"""One sampled completion and what is known of it. Plain Python: no torch, no tokenizer, no trainer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
_THINK_BLOCK = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Context:
    """Privileged text for the teacher, and where it came from.

    A context builder may return a plain string instead: its source is then "custom". White space alone is no context.
    """

    text: str | list[Message] | None
    """Text, or chat messages, which are written out as text. `None`: a teacher without privileged text, which sees the
    prompt with its own chat-template arguments (`context="none"`)."""
    source: str = "custom"
    """Shown in the metrics as `self_distill/context_<source>`, and in the token log."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion y and all that a context builder or a row weight may look at."""

    row: Mapping[str, Any]
    """The dataset row, with every column."""
    completion: str
    """The completion as text, thinking part included, special tokens removed."""
    correct: bool
    """Raw correctness (see `correctness_reward`), never the shaped total reward. Truncated rollouts are not correct."""
    gold: str | None = None
    """The row's privileged column, `None` where the row or the dataset has none, or where it is blank."""
    assessed: bool = True
    """Whether there is a correctness reward for this rollout: a reward function may answer `None` (or NaN)."""
    peers: tuple[str, ...] = ()
    """The correct completions of the same group, never this rollout itself, in an order that the group shares. Here and
    in the next two, without their thinking part where `context_thinking="remove"`."""
    wrong_peers: tuple[str, ...] = ()
    """The finished completions of the same group that were assessed as wrong, never this rollout itself."""
    finished_peers: tuple[str, ...] = ()
    """The finished completions of the same group, right or wrong, never this rollout itself."""
    other_gold: str | None = None
    """The gold solution of another problem of the batch, the same for the whole group; never the row's own."""
    pass_rate: float | None = None
    """Share of correct rollouts among the assessed ones of the group, in [0, 1]; `None` where none was assessed."""
    group_size: int = 1
    """Rollouts per prompt."""
    finished: bool = True
    """Whether the completion ended by itself, by a stop string or by its `rollout_func`: it was not cut off."""
    passed: bool | None = None
    """Whether the correctness reward was reached, finished or not; `None` says the same as `correct`."""
    feedback: str | None = None
    """What the reward (`log_extra("feedback", ...)`), the `rollout_func` (a field "feedback") or the environment (an
    attribute `feedback`) said of this completion, or the dataset column that `feedback_column` names."""
    reward: float = 0.0
    """The weighted sum of all rewards, NaN where there is none."""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """The reward of each reward function by name."""
    prompt: str | list[Message] = ""
    """The prompt, plain or as messages."""
    step: int = 0
    """Optimiser steps that were made before this rollout."""
    seed: str = ""
    """Names the group in this run: the same in every process, and the same again after a restart."""
    index: int = 0
    """Place of the rollout in the global batch."""
    shown: str | None = None
    """The completion as the teachers of others are shown it: without its thinking part where
    `context_thinking="remove"`. `None`: as it is."""


def completion_text(completion: str | list[Message], *, tool_results: bool = True, thinking: bool = True) -> str:
    """A completion as text: itself, or the contents of its messages (all turns of a tool run).

    `thinking=False` leaves the thinking part out: of a text see `without_thinking`; of messages the fields for it, too.
    """
    if isinstance(completion, str):
        return completion if thinking else without_thinking(completion)
    messages = [message for message in completion if tool_results or message.get("role") != "tool"]
    return "\n".join(part for message in messages for part in _message_parts(message, thinking=thinking))


def without_thinking(text: str) -> str:
    """`text` without its `<think>` blocks, and without white space at its ends where there was one.

    A closing mark alone, as where the prompt opens the block, takes everything before it; an opening mark alone, as in
    a text that was cut off, everything after it.
    """
    rest = _THINK_BLOCK.sub("", text).rpartition("</think>")[2].partition("<think>")[0]
    return text if rest == text else rest.strip()


def conversation_text(messages: list[Message]) -> str:
    """Chat messages as the text of a context: one alone as its content, several with their roles in front."""
    texts = ["\n".join(_message_parts(message)) for message in messages]
    if len(messages) == 1:
        return texts[0]
    roles = [str(message.get("role", "")).capitalize() for message in messages]
    return "\n\n".join(f"{role}: {text}" for role, text in zip(roles, texts, strict=True))


def _message_parts(message: Mapping[str, Any], *, thinking: bool = True) -> list[str]:
    content = message.get("content") or ""
    if not isinstance(content, str):  # content blocks: [{"type": "text", "text": ...}, {"type": "image", ...}]
        content = "".join(block.get("text", "") for block in content)
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls") or []]
    if not thinking:
        return [part for part in (without_thinking(content), *calls) if part]
    thought = message.get("reasoning_content") or message.get("thinking") or ""
    return [part for part in (thought, content, *calls) if part]
