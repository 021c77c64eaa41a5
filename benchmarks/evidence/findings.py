"""The main contrast in one sentence a method, and the controls beside what they control, with their numbers."""

from evidence import analysis
from evidence.analysis import Difference
from evidence.markdown import LABELS, NOTHING, interval, numbers, table
from evidence.plan import MAIN, OTHER_PAIRS, pairs_of
from evidence.raw import Result

DIRECT = (
    ("rlrt", "grpo", "routes"),
    ("rlrt", "rlrt_gold", "routes"),
    ("rlrt", "rlrt_other_gold", "routes"),
    ("rlrt_other_gold", "grpo", "routes"),
    ("poweropd_gold", "grpo", "routes"),
    ("poweropd_gold", "grpo", "pass1"),
    ("antisd_open", "antisd", "routes"),
    ("opsd_unclipped", "opsd", "routes"),
    ("opsd_unclipped", "opsd", "pass1"),
    ("sdpo_base", "opsd", "routes"),
    ("sdpo_base", "opsd", "pass1"),
)
"""Pairs of methods that the prose of the page sets against one another."""
WEIGHTS = {
    "base": "the policy before training",
    "ema": "an average of the policy's weights",
    "live": "the policy itself",
}


def findings(methods: dict[str, list[Result]], task: str = "routes") -> str:
    """A line for each main method, once all worlds of the contrast are there. One right answer has no routes."""
    if any(len(methods.get(name, [])) < pairs_of(task, name) for name in MAIN):
        return NOTHING
    metrics = ("pass8", "pass1") if task == "sums" else ("routes", "pass8", "pass1")
    lines = []
    for name in MAIN[1:]:
        told = ", ".join(f"{LABELS[metric]} {told_of(between(methods, name, metric))}" for metric in metrics)
        line = f"- **{name}** - grpo, area under the curve: {told}. pass@1 at the end: "
        line += f"{told_of(between(methods, name, 'pass1', last=True))}."
        if "routes" in metrics:
            same = analysis.at_the_same_pass1(methods[name], methods["grpo"], "routes")
            line += f" Distinct right routes where both have the same pass@1: {told_of(same) if same else 'no pair'}."
        lines.append(line)
    return "\n".join(lines)


def controls(methods: dict[str, list[Result]]) -> str:
    """For GRPO and each main method: what training gave with a teacher that sees a right thing, another, or none."""
    if any(len(methods.get(name, [])) < OTHER_PAIRS for name in MAIN):
        return NOTHING
    lines = [f"- **grpo**, which has no teacher: {told_of(gain(methods['grpo']))}."]
    for name in MAIN[1:]:
        given = {"a right peer": name, "the gold solution": f"{name}_gold"}
        given |= {"the solution of another problem": f"{name}_other_gold", "nothing": f"{name}_none"}
        lines.append(f"- **{name}**, whose teacher sees {gains(methods, given)}.")
    return "\n".join(lines)


def teachers(methods: dict[str, list[Result]]) -> str:
    """What training gave, by whose weights score."""
    lines = []
    for name, own in (("opsd", "base"), ("sdpo", "ema"), ("rlrt", "live")):
        found = gains(methods, {what: name if kind == own else f"{name}_{kind}" for kind, what in WEIGHTS.items()})
        lines += [f"- **{name}**, whose teacher is {found}."] if ";" in found else []
    return "\n".join(lines) or NOTHING


def direct(methods: dict[str, list[Result]]) -> str:
    """Variants against one another, in the worlds that all methods have. Not in the plan, not corrected."""
    rows = []
    for ours, theirs, metric in DIRECT:
        both = [
            analysis.by_world([run for run in methods.get(name, []) if run["world"] < OTHER_PAIRS], metric)
            for name in (ours, theirs)
        ]
        if all(len(values) >= OTHER_PAIRS for values in both):
            rows.append([f"{ours} - {theirs}", LABELS[metric], *numbers(analysis.difference(ours, metric, *both))])
    return table(["difference", "area under", "pairs", "mean", "95 %", "SD of a pair"], rows)


def gains(methods: dict[str, list[Result]], named: dict[str, str]) -> str:
    """`a right peer: +0.1 [...]; ...` for the methods, by what they are told as, whose worlds are all there."""
    whole = {what: name for what, name in named.items() if len(methods.get(name, [])) >= OTHER_PAIRS}
    return "; ".join(f"{what}: {told_of(gain(methods[name]))}" for what, name in whole.items())


def gain(runs: list[Result]) -> Difference:
    """pass@1 at the end minus pass@1 before training, in the worlds that all methods have."""
    return analysis.loss_from_start([run for run in runs if run["world"] < OTHER_PAIRS], "pass1")


def between(methods: dict[str, list[Result]], name: str, metric: str, *, last: bool = False) -> Difference:
    ours, theirs = (analysis.by_world(methods[each], metric, last=last) for each in (name, "grpo"))
    return analysis.difference(name, metric, ours, theirs)


def told_of(difference: Difference) -> str:
    return f"{difference.mean:+.3f} {interval(difference.low, difference.high)}"
