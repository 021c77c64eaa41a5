"""Which privileged text a rollout's teacher is shown. Plain Python: no torch, no tokenizer, no trainer.

A context builder is any function `Rollout -> Context | str | None`; `None` means that the row gets no teacher. Pass one
as `context_builder=` to a trainer, or name it in the config (`context="my_package.my_module.my_function"`).
"""

import importlib
import random
from collections.abc import Callable
from typing import Any

from trl_selfdistill.context.answers import final_answer, majority
from trl_selfdistill.context.inputs import did_you_mean, takes_one
from trl_selfdistill.context.memory import ContextMemory, LessonMemory
from trl_selfdistill.context.rollout import Context, Rollout, conversation_text

ContextBuilder = Callable[[Rollout], Context | str | list[dict[str, Any]] | None]

NO_PRIVILEGED_TEXT = Context(None, "none")
"""A teacher that sees the prompt alone, with its own chat-template arguments: asked for by name, never by accident."""


def gold(rollout: Rollout) -> Context | None:
    """The dataset's own solution (OPSD)."""
    return None if rollout.gold is None else Context(rollout.gold, "gold")


def correct_peer(rollout: Rollout) -> Context | None:
    """A correct rollout of the same group, never the rollout itself (RLRT).

    One is drawn for the whole group, and a second one for that rollout itself: a group has two teacher prompts at most.
    """
    return Context(rollout.peers[0], "peer") if rollout.peers else None


def own_peer(rollout: Rollout) -> Context | None:
    """A correct rollout of the same group, drawn anew for each rollout, never the rollout itself."""
    if not rollout.peers:
        return None
    return Context(random.Random(f"{rollout.seed}/{rollout.index}").choice(rollout.peers), "peer")


def peer_else_gold(rollout: Rollout) -> Context | None:
    """A correct peer where the group has one, else the dataset's solution (AntiSD)."""
    return correct_peer(rollout) or gold(rollout)


def peer_else_feedback(rollout: Rollout) -> Context | None:
    """A correct peer where the group has one, else what was said of the rollout itself (SDPO)."""
    return correct_peer(rollout) or feedback(rollout)


def other_gold(rollout: Rollout) -> Context | None:
    """The gold solution of another problem of the batch: the wrong-reference control.

    OP2SD, https://huggingface.co/papers/2608.09228.
    """
    return None if rollout.other_gold is None else Context(rollout.other_gold, "other_gold")


def no_text(rollout: Rollout) -> Context:
    """A teacher without privileged text: the reference-free control, https://huggingface.co/papers/2609.20612."""
    return NO_PRIVILEGED_TEXT


def majority_peer(rollout: Rollout) -> Context | None:
    """A finished rollout of the group with the group's most frequent answer: needs no gold and no reward.

    U-OPSD, https://huggingface.co/papers/2608.06296. See `final_answer` for what counts as the answer.
    """
    own = [rollout.completion] if rollout.finished else []
    answer = majority([final_answer(text) for text in (*own, *rollout.finished_peers)], rollout.seed)
    agreeing = [text for text in rollout.finished_peers if answer is not None and final_answer(text) == answer]
    return Context(agreeing[0], "majority") if agreeing else None


def feedback(rollout: Rollout) -> Context | None:
    """What the environment, the `rollout_func` or the reward said of this very rollout; hindsight, as in SDPO.

    SDPO, https://huggingface.co/papers/2601.20802.
    """
    return None if rollout.feedback is None else Context(rollout.feedback, "feedback")


BUILTIN: dict[str, ContextBuilder] = {
    "gold": gold,
    "peer": correct_peer,
    "own_peer": own_peer,
    "peer_else_gold": peer_else_gold,
    "peer_else_feedback": peer_else_feedback,
    "majority": majority_peer,
    "feedback": feedback,
    "other_gold": other_gold,
    "none": no_text,
}
MEMORIES: dict[str, type[ContextMemory]] = {"memory": LessonMemory}
"""Builders that remember: made anew for each trainer."""
NAMES = sorted([*BUILTIN, *MEMORIES])
NEEDS_GOLD = ("gold", "peer_else_gold", "other_gold")
NEEDS_GROUP = ("peer", "own_peer", "majority")
NEEDS_CORRECTNESS = ("peer", "own_peer", "peer_else_gold", "peer_else_feedback")


def as_context(made: Any, *, maker: str) -> Context | None:
    """What a context builder returned, as a `Context` with text; `None` where it is blank.

    Raises `ValueError` naming the `maker` when it is nothing of the kind.
    """
    context = made if isinstance(made, Context) else None if made is None else Context(made)
    if context is None or context.text is None:
        return context
    text = context.text
    if isinstance(text, list) and text and all(isinstance(m, dict) and "role" in m and "content" in m for m in text):
        text = conversation_text(text)
    if not isinstance(text, str):
        raise ValueError(
            f"{maker} must return a string, a Context, chat messages or None, but returned a {type(text).__name__}. "
            "Convert it there."
        )
    return Context(text, context.source) if text.strip() else None


def verdict(rollout: Rollout) -> str:
    """How the rollout fared: its feedback where it has any, else right, wrong or not assessed.

    The verdict follows the raw reward: a right answer that was cut off is not called incorrect.
    """
    if rollout.feedback is not None:
        return rollout.feedback  # the collator refuses what is not text, where the template asks for it
    if not rollout.assessed:
        return "The answer was not assessed."
    right = rollout.correct if rollout.passed is None else rollout.passed
    return "The answer is correct." if right else "The answer is incorrect."


def resolve_context(name: str) -> ContextBuilder:
    """The builder called `name`: one of `NAMES`, or the dotted path of a function.

    Raises `ValueError` when nothing callable is found under that name.
    """
    if name in MEMORIES:
        return MEMORIES[name]()
    return BUILTIN[name] if name in BUILTIN else resolve_function(name, field="context", names=NAMES)


def resolve_function(
    name: str, *, field: str, names: list[str] | None = None, argument: str = "the Rollout"
) -> Callable[..., Any]:
    """The function with the dotted path `name`, which takes one `argument`.

    Raises `ValueError` naming the configuration's `field`. `names` are the values that the field takes besides, for
    the message.
    """
    module, _, attribute = name.rpartition(".")
    also = f"one of {names} or " if names else ""
    if not module:
        raise ValueError(
            f"{field}={name!r} is not {also}the dotted path of a function, such as 'my_module.my_function'."
            f"{did_you_mean(name, names or [])}"
        )
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{field}={name!r} is not {also}the dotted path of an importable function ({error}). Put the function "
            "into a module that Python finds; a context may also be passed to the trainer as `context_builder`."
        ) from error
    if callable(function):
        return takes_one(function, field=f"{field}={name!r}", argument=argument)
    raise ValueError(f"{field}={name!r} names a {type(function).__name__}, not a function of {argument}.")
