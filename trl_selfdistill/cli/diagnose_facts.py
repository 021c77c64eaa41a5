"""From samples and token tables to what a diagnosis says of each context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trl_selfdistill.cli.diagnose_advice import RICHEST, Facts, Findings
from trl_selfdistill.cli.diagnose_effects import Effects, effects_of, length_effect, mean
from trl_selfdistill.cli.diagnose_scores import TokenTable
from trl_selfdistill.cli.eval_metrics import Interval, Sample, assessed, by_problem, ratio_interval, summarise
from trl_selfdistill.cli.sampling import Sampling


@dataclass(frozen=True)
class ContextFacts:
    """What was found under one context."""

    problems: frozenset[int]
    """Those that have this context."""
    taught: float
    """Share of the rollouts that have this context."""
    answers: Mapping[str, Interval]
    """Of the teacher's own completions: `summarise` with k = 1."""
    epistemic_tokens: int
    log_ratio_epistemic: Interval
    log_ratio_other: Interval
    """Mean u over the student's tokens, with intervals over problems."""
    student_entropy: float
    teacher_entropy: float
    effects: Effects
    toward: str
    away: str
    """Where the student's length would go: toward the teacher (OPSD), or away from it (RLRT, AntiSD)."""

    @property
    def facts(self) -> Facts:
        return facts_of(self.answers)


@dataclass(frozen=True)
class Diagnosis:
    """All that a diagnosis found."""

    settings: Mapping[str, Any]
    student: Sequence[Sample]
    contexts: Mapping[str, ContextFacts]
    """By name, in the order of `CONTEXTS`."""
    notes: Sequence[str]

    @property
    def findings(self) -> Findings:
        """What the rules of the advice look at."""
        groups = assessed(by_problem(self.student))
        mixed = [len({sample.correct for sample in group}) > 1 for group in groups]
        rich = next((self.contexts[name] for name in RICHEST if name in self.contexts), None)
        # A right rollout is there for easier problems alone: the student is compared on the same ones.
        compared = [sample for sample in self.student if rich is None or sample.problem in rich.problems]
        own = facts_of(summarise(compared, [1]))
        contexts = {name: found.facts for name, found in self.contexts.items() if name != "none"}
        return Findings(own, contexts, sum(mixed) / len(mixed) if mixed else 0.0)


def facts_of(metrics: Mapping[str, Interval]) -> Facts:
    return Facts(metrics["pass@1"].value, metrics["length"].value, metrics["epistemic_words"].value)


def token_mean(values: Tensor, problems: Tensor, *, seed: int) -> Interval:
    """The mean over tokens, with a bootstrap interval over problems."""
    groups = [values[problems == problem] for problem in problems.unique()]
    return ratio_interval(
        [group.double().sum().item() for group in groups], [len(group) for group in groups], seed=seed
    )


def diagnose_context(
    table: TokenTable,
    answers: Sequence[Sample],
    student: Sequence[Sample],
    correct: Tensor,
    taught: Sequence[bool],
    sampling: Sampling,
) -> ContextFacts:
    """The facts of a context from its token table and the teacher's own answers.

    Args:
        table: the student's tokens.
        answers: the teacher's completions.
        student: the student's.
        correct: (rollouts,) bool.
        taught: whether a rollout has the context.
        sampling: the settings of the rollouts.
    """
    metrics = summarise(answers, [1], seed=sampling.seed)
    asked = frozenset(sample.problem for sample in answers)
    own = summarise([s for s in student if s.problem in asked], [1])["length"].value
    u, words, problems = table.log_ratio, table.epistemic, table.row // sampling.n
    effects = effects_of(table.student_logps, table.teacher_logps, table.divergence, words, correct[table.row.cpu()])
    return ContextFacts(
        problems=asked,
        taught=sum(taught) / len(taught),
        answers=metrics,
        epistemic_tokens=int(words.sum()),
        log_ratio_epistemic=token_mean(u[words], problems[words], seed=sampling.seed),
        log_ratio_other=token_mean(u[~words], problems[~words], seed=sampling.seed),
        student_entropy=mean(table.student_entropy),
        teacher_entropy=mean(table.teacher_entropy),
        effects=effects,
        toward=length_effect(metrics["length"].value, own, toward=True),
        away=length_effect(metrics["length"].value, own, toward=False),
    )
