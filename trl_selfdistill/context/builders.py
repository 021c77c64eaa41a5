"""Which privileged text a rollout's teacher is shown. Plain Python: no torch, no tokenizer, no trainer.

A context builder is any function `Rollout -> str | None`; `None` means that the row gets no teacher. Pass one as
`context_builder=` to a trainer, or name it in the config (`context="my_package.my_module.my_function"`).
"""

import importlib
from collections.abc import Callable
from typing import Any

from trl_selfdistill.context.rollout import Rollout

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


CONTEXT_SOURCES = ("none", "peer", "gold", "custom")


def context_source(rollout: Rollout, context: str | None) -> str:
    """Where a context came from: "none", "peer", "gold" or, for anything else that a builder made, "custom"."""
    if context is None:
        return "none"
    if context in rollout.peers:
        return "peer"
    return "gold" if context == rollout.gold else "custom"
