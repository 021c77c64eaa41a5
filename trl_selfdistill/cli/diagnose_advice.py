"""One sentence of advice from what was measured. The rules stand in `RULES`, the first that applies speaks.

docs/diagnose.md says the same in a table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SOLVED = 0.95
"""Accuracy of a student that has little to learn."""
GAIN = 0.10
"""By how much a teacher's accuracy must be above the student's to have something to teach."""
CLOSE = 0.05
"""Accuracies within this much are the same."""
SHORT = 0.5
"""Share of the student's length, and of its epistemic words, below which a teacher skips the reasoning."""
RICHEST = ("solution", "peer")
"""The contexts that tell most: the first of them that there is stands for the teacher."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured with one prompt: the student's own, or the teacher's under a context."""

    accuracy: float
    length: float
    """Mean tokens a completion."""
    epistemic: float
    """Mean epistemic words a completion."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the rules look at."""

    student: Facts
    """On the problems that have the richest context."""
    contexts: Mapping[str, Facts]
    """By the names of `diagnose_contexts.CONTEXTS`."""
    mixed: float
    """Share of the problems that have right and wrong rollouts: what GRPO, RLRT and AntiSD learn from."""

    @property
    def richest(self) -> tuple[str, Facts] | None:
        """The context that tells most: the full solution, else a right rollout."""
        names = [name for name in RICHEST if name in self.contexts]
        return (names[0], self.contexts[names[0]]) if names else None


WORDS = {"solution": "the full solution", "peer": "a right rollout", "answer": "the answer alone"}
WORDS |= {"solution_without_thinking": "the solution without its thinking", "thinking": "thinking switched on"}


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def by_rollouts(found: Findings) -> str:
    """What is left to the algorithms that learn from rewards."""
    if found.mixed > 0:
        return f"RLRT and AntiSD have right and wrong rollouts on {percent(found.mixed)} of the problems"
    return "nor have RLRT and AntiSD: no problem has right and wrong rollouts"


def no_context(found: Findings) -> str | None:
    if found.richest is not None:
        return None
    return "No context could be made: the data has no gold solutions, and no rollout was right. Easier problems first."


def solved(found: Findings) -> str | None:
    if found.student.accuracy < SOLVED:
        return None
    return f"The student is right in {percent(found.student.accuracy)} of samples: take harder problems."


def nothing_to_learn(found: Findings) -> str | None:
    assert found.richest is not None
    name, teacher = found.richest
    if teacher.accuracy - found.student.accuracy >= GAIN:
        return None
    return (
        f"The teacher with {WORDS[name]} answers correctly in {percent(teacher.accuracy)} of samples, the student "
        f"without it in {percent(found.student.accuracy)}: OPSD has nothing to learn here; {by_rollouts(found)}."
    )


def not_the_content(found: Findings) -> str | None:
    assert found.richest is not None
    name, teacher = found.richest
    other = found.contexts.get("other")
    if other is None or other.accuracy < teacher.accuracy - CLOSE:
        return None
    return (
        f"Another problem's solution helps as much as {WORDS[name]} ({percent(other.accuracy)} and "
        f"{percent(teacher.accuracy)} of samples are right): the teacher takes the form from it, not the content."
    )


def only_thinking(found: Findings) -> str | None:
    assert found.richest is not None
    name, teacher = found.richest
    thinking = found.contexts.get("thinking")
    if thinking is None or thinking.accuracy < teacher.accuracy - CLOSE:
        return None
    return (
        f"Thinking alone brings what {WORDS[name]} brings ({percent(thinking.accuracy)} and "
        f"{percent(teacher.accuracy)} of samples are right): context='none' with a thinking teacher needs no solutions."
    )


def skips(found: Findings, facts: Facts) -> bool:
    """Whether a teacher with these facts is far shorter than the student, with far fewer epistemic words."""
    student = found.student
    shorter = facts.length < SHORT * student.length
    return shorter and student.epistemic > 0 and facts.epistemic < SHORT * student.epistemic


def suppresses(found: Findings) -> str | None:
    assert found.richest is not None
    name, teacher = found.richest
    if not skips(found, teacher):
        return None
    start = (
        f"The teacher with {WORDS[name]} is right in {percent(teacher.accuracy)} of samples with "
        f"{percent(teacher.length / found.student.length)} of the student's length and "
        f"{percent(teacher.epistemic / found.student.epistemic)} of its epistemic words: OPSD would "
        "teach it to skip its reasoning"
    )
    for other in ("solution_without_thinking", "answer"):
        facts = found.contexts.get(other)
        if facts is not None and not skips(found, facts) and facts.accuracy - found.student.accuracy >= GAIN:
            return f"{start}; {WORDS[other]} as context is right in {percent(facts.accuracy)} and does not."
    return f"{start}; RLRT and AntiSD push the other way."


def worth_it(found: Findings) -> str | None:
    assert found.richest is not None
    name, teacher = found.richest
    return (
        f"The teacher with {WORDS[name]} answers correctly in {percent(teacher.accuracy)} of samples, the student "
        f"without it in {percent(found.student.accuracy)}: OPSD has something to learn here."
    )


RULES: dict[str, Callable[[Findings], str | None]] = {
    "no context": no_context,
    "solved": solved,
    "nothing to learn": nothing_to_learn,
    "not the content": not_the_content,
    "only thinking": only_thinking,
    "suppresses": suppresses,
    "worth it": worth_it,
}


def advise(found: Findings) -> tuple[str, str]:
    """(name of the rule, sentence). Raises `ValueError` where the student's accuracy is not known."""
    if math.isnan(found.student.accuracy):
        raise ValueError("advice needs rewards that assess the rollouts: check reward_funcs and the gold solutions.")
    for name, rule in RULES.items():
        sentence = rule(found)
        if sentence is not None:
            return name, sentence
    raise AssertionError("the last rule always applies")
