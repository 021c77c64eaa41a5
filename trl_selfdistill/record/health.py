"""The health checks of a run: a table of rules from logged metrics to messages. Plain Python, no state.

What was measured for the thresholds stands in docs/health.md, rule by rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl_selfdistill.context.inputs import did_you_mean
from trl_selfdistill.record import symptoms
from trl_selfdistill.record.log_lines import History, metric, ratio
from trl_selfdistill.record.symptoms import Facts, Symptom

ACTIONS = ("warn", "stop", "ignore")


@dataclass(frozen=True, slots=True)
class Rule:
    """One check."""

    name: str
    threshold: float
    """The default of `health_thresholds[name]`."""
    unit: str
    """What the threshold counts."""
    see: Symptom
    remedy: str
    """What to do about it, in one sentence."""


TABLE = [
    Rule(
        "no_teacher",
        5,
        "steps in a row without a row that has a teacher",
        symptoms.no_teacher,
        "Take easier problems, more rollouts a prompt, or another context (peer_else_gold, gold).",
    ),
    Rule(
        "no_weight",
        5,
        "steps in a row in which row_weight is 0 for all rollouts",
        symptoms.no_weight,
        "Look at self_distill/correct: 'paced' needs prompts that are solved sometimes, by correctness_reward.",
    ),
    Rule(
        "first_tokens",
        6.0,
        "nats: mean |u| of each rollout's first token, from the first steps on",
        symptoms.first_tokens,
        "Look at both prompts with `trl-selfdistill preview`: the templates or thinking modes may not match.",
    ),
    Rule(
        "leakage",
        0.5,
        "share of completions that mention the given solution",
        symptoms.leakage,
        "The student copies the teacher's manner: change teacher_template, or lower the strength or the learning rate.",
    ),
    Rule(
        "leakage_rise",
        0.1,
        "rise of that share over the first steps",
        symptoms.leakage_rise,
        "The student copies the teacher's manner: change teacher_template, or lower the strength or the learning rate.",
    ),
    Rule(
        "epistemic",
        0.5,
        "share of the first steps' deliberation words per token",
        symptoms.drifted(
            ratio("completions/epistemic_words", "completions/mean_length"),
            "words of deliberation (wait, perhaps, check, ...) went from {} to {} per token",
            symptoms.share_of_some,
        ),
        "Evaluate on problems from elsewhere: the student may be losing its checks; stop earlier, or try AntiSD.",
    ),
    Rule(
        "entropy_low",
        0.04,
        "share of the first steps' student entropy",
        symptoms.drifted(
            metric("self_distill/student_entropy"), "the student's entropy fell from {} to {} nats", symptoms.share
        ),
        "The student explores no more: stop here, lower the learning rate, or take new problems.",
    ),
    Rule(
        "entropy_high",
        3.0,
        "times the first steps' student entropy",
        symptoms.drifted(
            metric("self_distill/student_entropy"), "the student's entropy rose from {} to {} nats", symptoms.times
        ),
        "The student is coming apart: go back to a checkpoint and lower the strength or the learning rate.",
    ),
    Rule(
        "length_tail",
        2.0,
        "times the first steps' 95th percentile of completion lengths",
        symptoms.drifted(
            metric("completions/length_p95"),
            "the longest twentieth of completions grew from {} to {} tokens",
            symptoms.times,
        ),
        "Read some: where they do not end by themselves, lower the strength or the learning rate.",
    ),
    Rule(
        "truncated",
        0.3,
        "rise of the share of truncated completions over the first steps",
        symptoms.drifted(
            metric("completions/clipped_ratio"), "truncated completions went from {} to {}", symptoms.rise, ".0%"
        ),
        "Raise max_completion_length; where completions do not end by themselves, lower the learning rate.",
    ),
    Rule(
        "no_spread",
        5,
        "steps in a row in which no group has different rewards",
        symptoms.no_spread,
        "Where all are right, take harder problems; where all are wrong, take easier ones or check the reward.",
    ),
    Rule(
        "gate_shut",
        50,
        "steps in a row with AntiSD's gate shut after the warm-up",
        symptoms.gate_shut,
        "Lower antisd_close_ratio, or start again with a longer antisd_warmup.",
    ),
    Rule(
        "gate_open",
        0.8,
        "share of the warm-up's teacher entropy below which AntiSD's gate should not be open",
        symptoms.gate_open,
        "The run is collapsing and the gate does not hold it: set antisd_close_ratio=0.93, lower antisd_strength.",
    ),
    Rule(
        "cut_contexts",
        0.2,
        "share of contexts that were cut",
        symptoms.above(
            "self_distill/context_truncated", "{} of the contexts were cut: the teacher sees parts of them", ".0%"
        ),
        "Shorten the solutions, set context_thinking='remove', raise max_context_tokens or shorten the completions.",
    ),
    Rule(
        "clipped_mass",
        0.5,
        "share of the teacher's probability mass on clipped entries",
        symptoms.above(
            "opsd/clipped_entry_mass", "opsd_entry_clip cuts entries that hold {} of the teacher's mass", ".0%"
        ),
        "What is left of the gradient may point away from the teacher: use opsd_token_clip instead.",
    ),
    Rule(
        "end_split",
        0.1,
        "share of the second end token among those that were sampled",
        symptoms.end_split,
        "Let the model have one: set a single eos_token_id in its generation_config, and the same in the tokenizer.",
    ),
    Rule(
        "end_disagreement",
        3.0,
        "nats between both sides' mean log-probability of a sampled end token",
        symptoms.end_disagreement,
        "Lengths will drift: compare both chat templates with `trl-selfdistill preview`, and what ends a turn in them.",
    ),
]
RULES: dict[str, Rule] = {rule.name: rule for rule in TABLE}


def thresholds_of(given: Mapping[str, Any] | None) -> dict[str, float]:
    """The threshold of every rule: the given ones over the defaults.

    Raises `ValueError` for a rule that does not exist, and for what is no number of at least 0.
    """
    for name, threshold in (given or {}).items():
        if name not in RULES:
            near = did_you_mean(str(name), RULES)
            raise ValueError(
                f"health_thresholds names {name!r}, which is no health check.{near} There are: {[*RULES]}."
            )
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold >= 0:
            raise ValueError(
                f"health_thresholds[{name!r}]={threshold!r} must be a number of at least 0: {RULES[name].unit}. "
                "`inf` (or 0 where a fall is watched) switches the check off."
            )
    return {name: rule.threshold for name, rule in RULES.items()} | dict(given or {})


def findings(history: History, thresholds: Mapping[str, float], facts: Facts) -> dict[str, str]:
    """What is wrong at the end of `history`, by rule: one line that says what is seen and what to do."""
    seen = {name: rule.see(history, thresholds[name], facts) for name, rule in RULES.items()}
    return {
        name: f"Health check {name!r}: {what}. {RULES[name].remedy}" for name, what in seen.items() if what is not None
    }
