"""The contexts that `diagnose` compares, each a context builder of the package or one made from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from trl_selfdistill.context.answers import final_answer
from trl_selfdistill.context.builders import (
    ContextBuilder,
    correct_peer,
    gold,
    majority_peer,
    no_text,
    other_gold,
)
from trl_selfdistill.context.rollout import Context, Rollout, without_thinking


def answer_only(rollout: Rollout) -> Context | None:
    """The final answer of the gold solution, and nothing of the way to it."""
    answer = None if rollout.gold is None else final_answer(rollout.gold)
    return None if answer is None else Context(answer, "answer")


def gold_without_thinking(rollout: Rollout) -> Context | None:
    """The gold solution without its `<think>` part."""
    return None if rollout.gold is None else Context(without_thinking(rollout.gold), "gold")


CONTEXTS: dict[str, tuple[str, ContextBuilder]] = {
    "none": ("the student's own prompt", no_text),
    "thinking": ("thinking switched on, no text", no_text),
    "answer": ("the final answer alone", answer_only),
    "solution_without_thinking": ("the solution without its <think> part", gold_without_thinking),
    "solution": ("the full solution", gold),
    "peer": ("a correct rollout of the group", correct_peer),
    "majority": ("a rollout with the most frequent answer", majority_peer),
    "other": ("another problem's solution", other_gold),
}
"""(what it is, builder) by name. `none` has the student's chat-template arguments, all others the teacher's."""


def choose(golds: Sequence[str | None], *, thinks: bool) -> tuple[list[str], list[str]]:
    """(names of the contexts worth comparing, why the others are left out).

    `thinks` tells whether the chat template knows thinking.
    """
    left: dict[str, str] = {}
    known = [text for text in golds if text is not None]
    if not thinks:
        left["thinking"] = "the chat template does not know enable_thinking"
    if not known:
        reason = "the data has no gold solution"
        left |= dict.fromkeys(("answer", "solution_without_thinking", "solution", "other"), reason)
    else:
        if all(text.strip() == final_answer(text) for text in known):
            left["answer"] = "the solutions are answers, so it is the full solution"
        if all(without_thinking(text) == text for text in known):
            left["solution_without_thinking"] = "the solutions have no <think> part, so it is the full solution"
    notes = [f"{CONTEXTS[name][0]}: left out, {reason}." for name, reason in left.items()]
    return [name for name in CONTEXTS if name not in left], notes


def chat_of(name: str, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Any]:
    """The chat-template arguments under a context."""
    return dict(student if name == "none" else teacher)
