"""Which privileged text a rollout's teacher is shown. Plain Python: no torch, no tokenizer, no trainer.

A context builder is any function `Rollout -> str | None`; `None` means that the row gets no teacher. Pass one as
`context_builder=` to a trainer, or name it in the config (`context="my_package.my_module.my_function"`).
"""

import importlib
import random
from collections.abc import Callable, Mapping, Sequence
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


ContextBuilder = Callable[[Rollout], str | None]
FEEDBACK_COLUMN = "feedback"


def gold(rollout: Rollout) -> str | None:
    """The dataset's own solution (OPSD)."""
    return rollout.gold


def correct_peer(rollout: Rollout) -> str | None:
    """A correct rollout of the same group, drawn uniformly, never the rollout itself (RLRT)."""
    return rollout.peers[0] if rollout.peers else None


def peer_else_gold(rollout: Rollout) -> str | None:
    """A correct peer where the group has one, else the dataset's solution (AntiSD)."""
    return rollout.peers[0] if rollout.peers else rollout.gold


BUILTIN: dict[str, ContextBuilder] = {"gold": gold, "peer": correct_peer, "peer_else_gold": peer_else_gold}


def verdict(rollout: Rollout) -> str:
    """How the rollout fared: the row's "feedback" where it has one, else right, wrong or not assessed."""
    feedback = rollout.row.get(FEEDBACK_COLUMN)
    if feedback is not None:
        return feedback  # the collator refuses what is not text, where the template asks for it
    if not rollout.assessed:
        return "The answer was not assessed."
    return "The answer is correct." if rollout.correct else "The answer is incorrect."


def resolve_context(name: str) -> ContextBuilder:
    """The builder called `name`: "gold", "peer", "peer_else_gold", or the dotted path of a function.

    Raises `ValueError` when nothing callable is found under that name.
    """
    return BUILTIN[name] if name in BUILTIN else resolve_function(name, field="context")


def resolve_function(name: str, *, field: str) -> ContextBuilder:
    """The function with the dotted path `name`. Raises `ValueError` naming the configuration's `field`."""
    module, _, attribute = name.rpartition(".")
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        builtin = f"one of {sorted(BUILTIN)} or " if field == "context" else ""
        raise ValueError(
            f"{field}={name!r} is not {builtin}the dotted path of an importable function ({error}). Put the function "
            "into a module that Python finds; a context may also be passed to the trainer as `context_builder`."
        ) from error
    if callable(function):
        return function  # pyright: ignore[reportReturnType]
    raise ValueError(f"{field}={name!r} names a {type(function).__name__}, not a function Rollout -> str | None.")


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


CONTEXT_SOURCES = ("none", "peer", "gold", "custom")


def context_source(rollout: Rollout, context: str | None) -> str:
    """Where a context came from: "none", "peer", "gold" or, for anything else that a builder made, "custom"."""
    if context is None:
        return "none"
    if context in rollout.peers:
        return "peer"
    return "gold" if context == rollout.gold else "custom"


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
