"""Decides the claims of `claims` by one rule, which was fixed before any result was read.

Every contrast has an interval of its mean paired difference, at a level that Holm's method gives it among all
contrasts of the list, run or not. Where the interval excludes 0 in the claimed direction, the claim is *seen*; where it
excludes 0 in the other, *the opposite is seen*. Else it is *not seen*, and the smallest difference is told that so many
pairs find at 80 % power. A claim of closeness is seen where the interval, at the strictest level, lies within the
margin, and its opposite where the interval lies outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from evidence import analysis
from evidence.claims import CLAIMS, CLOSE, LESS, START, Claim, Contrast
from evidence.markdown import LABELS, interval, table
from evidence.plan import compared, pairs_of
from evidence.power import LEVEL, detectable

SEEN, OPPOSITE, NOT_SEEN = "seen", "the opposite seen", "not seen"
NOT_RUN, CANNOT = "not run yet", "cannot be seen at this size"
NOT_PLANNED = "not compared on this task"
MARGIN = 0.05
"""Two methods whose areas under pass@1 differ by less are close."""

Results = dict[str, list[analysis.Result]]


@dataclass(frozen=True)
class Decision:
    """A difference with its interval at a corrected level, and what follows."""

    verdict: str
    difference: analysis.Difference
    low: float
    high: float
    findable: float
    """The smallest true difference that a test at this level finds four times in five."""


def difference_of(contrast: Contrast, methods: Results, task: str) -> analysis.Difference | None:
    """`None` until all planned worlds of both are finished. Others are left out."""
    names = [contrast.ours] if contrast.theirs == START else [contrast.ours, contrast.theirs]
    planned = [(world, 0) for world in range(min(pairs_of(task, name) for name in names))]
    values = [analysis.by_world(methods.get(name, []), contrast.metric, last=contrast.end) for name in names]
    if contrast.theirs == START:
        runs = methods.get(contrast.ours, [])
        values.append({(run["world"], run["seed"]): run["curve"][0][contrast.metric] for run in runs})
    if any(pair not in found for found in values for pair in planned):
        return None
    ours, theirs = ({pair: found[pair] for pair in planned} for found in values)
    return analysis.difference(contrast.ours, contrast.metric, ours, theirs)


def levels(ps: Sequence[float], tests: int) -> list[float]:
    """Holm's level of each p among `tests`. Behind the first that is not rejected, all have that one's level."""
    found, level, rejecting = [0.0] * len(ps), LEVEL, True
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        level = LEVEL / (tests - rank) if rejecting else level
        rejecting = rejecting and ps[place] <= level
        found[place] = level
    return found


def decision(direction: str, d: analysis.Difference, level: float) -> Decision:
    half = float(stats.t.ppf(1 - level / 2, d.pairs - 1)) * d.deviation / d.pairs**0.5
    low, high = d.mean - half, d.mean + half
    if direction == CLOSE:
        yes, no = low > -MARGIN and high < MARGIN, low > MARGIN or high < -MARGIN
    else:
        yes, no = (high < 0, low > 0) if direction == LESS else (low > 0, high < 0)
    verdict = SEEN if yes else OPPOSITE if no else NOT_SEEN
    return Decision(verdict, d, low, high, detectable(d.pairs, level) * d.deviation)


def decided(methods: Results, task: str, claims: Sequence[Claim] = CLAIMS) -> list[Decision | None]:
    """One entry a claim: `None` where it has no contrast, or where its runs are missing."""
    tests = sum(claim.contrast is not None for claim in claims)
    found = {
        i: (claim.contrast, d)
        for i, claim in enumerate(claims)
        if claim.contrast and (d := difference_of(claim.contrast, methods, task))
    }
    steps = [i for i, (contrast, _) in found.items() if contrast.direction != CLOSE]
    level_of = dict(zip(steps, levels([found[i][1].p for i in steps], tests), strict=True))
    made = {i: decision(contrast.direction, d, level_of.get(i, LEVEL / tests)) for i, (contrast, d) in found.items()}
    return [made.get(i) for i in range(len(claims))]


def described(contrast: Contrast) -> str:
    """`rlrt - grpo > 0, area under routes`."""
    sign = {CLOSE: f"within ±{MARGIN}", LESS: "< 0"}.get(contrast.direction, "> 0")
    where = f"{LABELS[contrast.metric]} at the end" if contrast.end else f"area under {LABELS[contrast.metric]}"
    return f"{contrast.ours} - {contrast.theirs} {sign}, {where}"


def row(claim: Claim, made: Decision | None, task: str) -> list[Any]:
    if claim.contrast is None:
        return [claim.says, claim.source, f"{CANNOT}: {claim.lacks}", "-", "-", "-", "-", "-"]
    text = [claim.says, claim.source]
    if made is None:
        planned = {claim.contrast.ours, claim.contrast.theirs} <= {*compared(task), START}
        return [*text, NOT_RUN if planned else NOT_PLANNED, described(claim.contrast), "-", "-", "-", "-"]
    d = made.difference
    measured = [d.pairs, f"{d.mean:+.3f}", interval(made.low, made.high), f"{made.findable:.3f}"]
    return [*text, f"**{made.verdict}**", described(claim.contrast), *measured]


def claims_table(methods: Results, task: str) -> str:
    head = ["claim", "where", "verdict", "decided by", "pairs", "mean", "interval, corrected", "could find"]
    return table(head, [row(claim, made, task) for claim, made in zip(CLAIMS, decided(methods, task), strict=True)])
