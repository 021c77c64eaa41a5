"""The main contrast in one sentence a method, with its numbers."""

from evidence import analysis
from evidence.analysis import Difference
from evidence.markdown import LABELS, NOTHING, interval
from evidence.plan import MAIN, PAIRS
from evidence.raw import Result


def findings(methods: dict[str, list[Result]]) -> str:
    """A line for each main method, once all worlds of the contrast are there."""
    if any(len(methods.get(name, [])) < PAIRS for name in MAIN):
        return NOTHING
    lines = []
    for name in MAIN[1:]:
        areas = [between(methods, name, metric) for metric in ("routes", "pass8", "pass1")]
        last = between(methods, name, "pass1", last=True)
        same = analysis.at_the_same_pass1(methods[name], methods["grpo"], "routes")
        told = ", ".join(f"{LABELS[d.metric]} {told_of(d)}" for d in areas)
        lines.append(
            f"- **{name}** - grpo, area under the curve: {told}. pass@1 at the end: {told_of(last)}. Distinct right "
            f"routes where both have the same pass@1: {told_of(same)}."
        )
    return "\n".join(lines)


def between(methods: dict[str, list[Result]], name: str, metric: str, *, last: bool = False) -> Difference:
    ours, theirs = (analysis.by_world(methods[each], metric, last=last) for each in (name, "grpo"))
    return analysis.difference(name, metric, ours, theirs)


def told_of(difference: Difference) -> str:
    return f"{difference.mean:+.3f} {interval(difference.low, difference.high)}"
