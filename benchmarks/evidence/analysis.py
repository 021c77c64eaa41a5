"""What the raw numbers say: intervals, paired differences, and their correction. No text, no pictures."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from evidence.measures import SAMPLES, pass_at
from evidence.plan import MAIN, compared, pairs_of
from evidence.rates import area_of

Result = dict[str, Any]
PRIMARY = ("pass8", "routes")
RESAMPLES = 2000


def curves(result: Result, metric: str) -> np.ndarray:
    """(evaluations, problems): the metric of every problem."""
    rows = [point["distinct" if metric == "routes" else "right"] for point in result["curve"]]
    if metric == "routes":
        return np.asarray(rows, dtype=float)
    k = {"pass1": 1, "pass8": 8}[metric]
    samples = result.get("samples", SAMPLES)
    by_count = np.array([pass_at(k, count, samples) for count in range(samples + 1)])
    return by_count[np.asarray(rows)]


def steps_of(result: Result) -> list[int]:
    return [point["step"] for point in result["curve"]]


def band(results: Sequence[Result], metric: str, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean curve, and its 95 % band (2, evaluations) by the bootstrap: worlds are drawn, and in each its problems."""
    values = np.stack([curves(result, metric) for result in results])
    runs, _, problems = values.shape
    rng = np.random.default_rng(seed)
    drawn = np.empty((RESAMPLES, values.shape[1]))
    for i in range(RESAMPLES):
        own = rng.integers(runs, size=runs)
        picked = rng.integers(problems, size=(runs, problems))
        drawn[i] = np.take_along_axis(values[own], picked[:, None, :], axis=2).mean(axis=(0, 2))
    return values.mean(axis=(0, 2)), np.percentile(drawn, [2.5, 97.5], axis=0)


@dataclass(frozen=True)
class Difference:
    """A method minus another over the worlds that both have."""

    method: str
    metric: str
    pairs: int
    mean: float
    deviation: float
    low: float
    high: float
    p: float
    corrected: float = float("nan")
    """By Holm's method over the family."""


def by_world(results: Sequence[Result], metric: str, *, last: bool = False) -> dict[tuple[int, int], float]:
    """One number a run, by world and seed: the area under the curve, or the last point."""
    value = (lambda r: r["curve"][-1][metric]) if last else (lambda r: area_of(r, metric))
    return {(result["world"], result["seed"]): value(result) for result in results}


def difference(method: str, metric: str, ours: dict[Any, float], theirs: dict[Any, float]) -> Difference:
    """A paired t-test, with the 95 % interval of the mean. Raises `ValueError` with fewer than two pairs."""
    pairs = sorted(ours.keys() & theirs.keys())
    if len(pairs) < 2:
        raise ValueError(f"{method}: {len(pairs)} pairs with its peer; a test needs two.")
    found = np.array([ours[pair] - theirs[pair] for pair in pairs])
    mean, deviation = float(found.mean()), float(found.std(ddof=1))
    if deviation == 0.0:  # the same runs, number for number
        return Difference(method, metric, len(pairs), mean, 0.0, mean, mean, 1.0 if mean == 0.0 else 0.0)
    error = deviation / len(pairs) ** 0.5
    half = float(stats.t.ppf(0.975, len(pairs) - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean / error), len(pairs) - 1))
    return Difference(method, metric, len(pairs), mean, deviation, mean - half, mean + half, p)


def corrected(differences: Sequence[Difference], tests: int) -> list[Difference]:
    """With Holm's correction over all planned `tests`. Those that are not given count as the weakest."""
    if not differences:
        return []
    adjusted = multipletests([d.p for d in differences] + [1.0] * (tests - len(differences)), method="holm")[1]
    adjusted = adjusted[: len(differences)]
    return [Difference(**{**vars(d), "corrected": float(p)}) for d, p in zip(differences, adjusted, strict=True)]


def grouped(results: dict[str, Result], part: str, task: str) -> dict[str, list[Result]]:
    """The results of a part of the plan by method."""
    found: dict[str, list[Result]] = {}
    for result in results.values():
        if (result["part"], result["task"]) == (part, task):
            found.setdefault(result["method"], []).append(result)
    return found


def family(methods: dict[str, list[Result]], planned: Sequence[str], task: str) -> list[Difference]:
    """Each planned method minus GRPO in both primary metrics, corrected together, where all its worlds are there.

    Those that are not there yet count in the correction: it can only become weaker when they come.
    """
    whole = [name for name in planned if len(methods.get(name, [])) >= pairs_of(task, name)]
    areas = {(name, m): by_world(methods[name], m) for name in [*whole, "grpo"] for m in PRIMARY}
    found = [difference(name, m, areas[name, m], areas["grpo", m]) for name in whole for m in PRIMARY]
    return corrected(found, len(planned) * len(PRIMARY))


def families(methods: dict[str, list[Result]], task: str) -> list[list[Difference]]:
    """The main tests, and all others: each family is corrected by itself."""
    names = [name for name in compared(task) if name != "grpo"]
    return [family(methods, [n for n in names if (n in MAIN) is main], task) for main in (True, False)]


def steps_to(result: Result, level: float) -> float:
    """The first step at which the curve of pass@1, drawn with straight lines, reaches a level; infinity if never."""
    points = [(point["step"], point["pass1"]) for point in result["curve"]]
    if points[0][1] >= level:
        return 0.0
    for (a, low), (b, high) in itertools.pairwise(points):
        if high >= level:
            return a + (b - a) * (level - low) / (high - low)
    return float("inf")


def matched(result: Result, metric: str, level: float) -> float:
    """A metric where pass@1 first reaches a level, for comparisons at the same pass@1; nan if it never does."""
    where = steps_to(result, level)
    if where == float("inf"):
        return float("nan")
    return float(np.interp(where, steps_of(result), [point[metric] for point in result["curve"]]))


def at_the_same_pass1(ours: Sequence[Result], theirs: Sequence[Result], metric: str) -> Difference | None:
    """The paired difference at the pass@1 that both runs of a pair reach: the lower one of their last.

    A pair in which a run ends at or below its beginning tells nothing and is left out; `None` with fewer than two.
    """
    pairs = {(r["world"], r["seed"]): r for r in theirs}
    a, b = {}, {}
    for run in ours:
        if peer := pairs.get(key := (run["world"], run["seed"])):
            level = min(run["curve"][-1]["pass1"], peer["curve"][-1]["pass1"])
            if level > max(run["curve"][0]["pass1"], peer["curve"][0]["pass1"]):
                a[key], b[key] = matched(run, metric, level), matched(peer, metric, level)
    return difference(ours[0]["method"], metric, a, b) if len(a) > 1 else None


def loss_from_start(results: Sequence[Result], metric: str) -> Difference:
    """The last point minus the first one of the same run: what training took away, or gave."""
    first = {(r["world"], r["seed"]): r["curve"][0][metric] for r in results}
    return difference("last - first", metric, by_world(results, metric, last=True), first)
