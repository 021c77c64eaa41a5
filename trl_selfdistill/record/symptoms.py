"""What can be wrong with a run, as functions of its history. Plain Python; `health.py` is the table of them."""

from collections.abc import Callable
from dataclasses import dataclass

from trl_selfdistill.record.log_lines import STEPS, Entry, History, Measure, metric, value

ENDS = "end_tokens/"
FEWEST_WORDS = 0.005
"""Words of deliberation per token below which their rate is not judged. The sums of SmolLM2-135M have 0.0009: a word or
two a step. A reasoning model has 0.01 and more."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules know of a run besides its metrics."""

    algorithm: str
    untaught: str
    """What the algorithm is without a teacher: "plain GRPO"."""
    no_context: str
    """Why no row gets a context, should that be so: "no group had a correct rollout"."""
    learns_from_rewards: bool = True
    asks_teacher: bool = True


Symptom = Callable[[History, float, Facts], str | None]
"""What is wrong, in words, and `None` where nothing is; given the history, the threshold and the facts."""


def no_teacher(history: History, limit: float, facts: Facts) -> str | None:
    steps = history.steps_in_a_row(lambda entry: value(entry, "self_distill/has_teacher") == 0)
    if steps < limit:
        return None
    unrewarded = facts.learns_from_rewards and value(history.entries[-1], "reward") is None
    why = "no rollout had a reward" if unrewarded else facts.no_context
    return f"{facts.algorithm} is {facts.untaught} now, because {why} ({steps} steps in a row)"


def no_spread(history: History, limit: float, facts: Facts) -> str | None:
    steps = history.steps_in_a_row(lambda entry: value(entry, "frac_reward_zero_std") == 1)
    if steps < limit or not facts.learns_from_rewards:
        return None
    reward = history.last(metric("reward"))
    mean = "" if reward is None else f" (mean {reward:.3g})"
    return f"all rollouts of a prompt had the same reward{mean} for {steps} steps: GRPO's advantages are 0"


def no_weight(history: History, limit: float, facts: Facts) -> str | None:
    steps = history.steps_in_a_row(lambda entry: value(entry, "self_distill/row_weight") == 0)
    return f"row_weight was 0 for all rollouts of {steps} steps: nothing is learned" if steps >= limit else None


def first_tokens(history: History, limit: float, facts: Facts) -> str | None:
    start = metric("self_distill/log_ratio_start")
    first, last = history.first(start), history.last(start)
    if first is None or last is None or min(first, last) <= limit:  # what grows later is no mismatch of prompts
        return None
    return f"student and teacher are {last:.3g} nats apart at the first token of a rollout, from the beginning on"


def gate_shut(history: History, limit: float, facts: Facts) -> str | None:
    def shut(entry: Entry) -> bool:
        return value(entry, "antisd/warm_entropy") is not None and value(entry, "antisd/gate") == 0

    steps = history.steps_in_a_row(shut)
    return f"AntiSD's gate has been shut for {steps} steps: AntiSD is plain GRPO now" if steps >= limit else None


def gate_open(history: History, limit: float, facts: Facts) -> str | None:
    def too_low(entry: Entry) -> bool:
        entropy, warm = value(entry, "antisd/entropy"), value(entry, "antisd/warm_entropy")
        return value(entry, "antisd/gate") == 1 and entropy is not None and warm is not None and entropy < limit * warm

    steps = history.steps_in_a_row(too_low)
    if steps < STEPS:
        return None
    now, warm = history.last(metric("antisd/entropy")), history.last(metric("antisd/warm_entropy"))
    return f"AntiSD's gate is open although the teacher's median entropy fell from {warm:.3g} to {now:.3g} nats"


def end_split(history: History, limit: float, facts: Facts) -> str | None:
    names = [name for name in history.entries[-1] if name.startswith(ENDS) and name.endswith("_share")]
    shares = {name.removeprefix(ENDS).removesuffix("_share"): history.last(metric(name)) for name in names}
    used = {token: share for token, share in shares.items() if share is not None and share >= limit}
    if len(used) < 2:
        return None
    told = " and ".join(f"token {token} ({share:.0%})" for token, share in used.items())
    return f"completions end with different end tokens, {told}, which share the mass of stopping"


def end_disagreement(history: History, limit: float, facts: Facts) -> str | None:
    for name in history.entries[-1]:
        if name.startswith(ENDS) and name.endswith("_student_logp"):
            token = name.removeprefix(ENDS).removesuffix("_student_logp")
            student = history.last(metric(name))
            teacher = history.last(metric(f"{ENDS}{token}_teacher_logp"))
            if student is not None and teacher is not None and abs(teacher - student) > limit:
                sides = f"student {student:.2f}, teacher {teacher:.2f}"
                return f"the two sides disagree on end token {token} where it was sampled (log-probability: {sides})"
    return None


def above(name: str, what: str, unit: str = ".3g") -> Symptom:
    """Sees that a metric's mean over the last steps is above the threshold. `what` has a place for it."""

    def see(history: History, limit: float, facts: Facts) -> str | None:
        last = history.last(metric(name))
        return what.format(format(last, unit)) if last is not None and last > limit else None

    return see


def of_a_teacher(see: Symptom) -> Symptom:
    """`see`, for algorithms that ask a teacher: others have no context that could leak."""
    return lambda history, limit, facts: see(history, limit, facts) if facts.asks_teacher else None


def drifted(measure: Measure, what: str, beyond: Callable[[float, float, float], bool], unit: str = ".3g") -> Symptom:
    """Sees that `beyond(first, last, threshold)` is so. `what` has a place for both."""

    def see(history: History, limit: float, facts: Facts) -> str | None:
        found = history.drift(measure)
        if found is None or not beyond(*found, limit):
            return None
        return what.format(*(format(number, unit) for number in found))

    return see


def times(first: float, last: float, limit: float) -> bool:
    return first > 0 and last > limit * first


def share(first: float, last: float, limit: float) -> bool:
    return last < limit * first


def share_of_some(first: float, last: float, limit: float) -> bool:
    """`share`, where the first steps had at least `FEWEST_WORDS`: a handful of words comes and goes by chance."""
    return first >= FEWEST_WORDS and share(first, last, limit)


def rise(first: float, last: float, limit: float) -> bool:
    return last - first > limit


_MENTIONS = "completions/mentions_solution"
leakage = of_a_teacher(above(_MENTIONS, "{} of the completions mention a solution that they never saw", ".0%"))
leakage_rise = of_a_teacher(
    drifted(
        metric(_MENTIONS), "completions that mention a solution which they never saw went from {} to {}", rise, ".0%"
    )
)
