"""What an evaluation measures, as pure functions of numbers. numpy only.

A *problem* has n sampled completions; c of them are right. Problems are drawn independently, the completions of one
problem are not independent of each other. So every interval is a bootstrap over whole problems (a cluster bootstrap).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its bootstrap interval. All NaN where there is nothing to estimate from."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What is counted of one completion."""

    problem: int
    correct: bool | None
    """`None`: the reward did not assess it."""
    tokens: int
    """Its end token included, as in the metrics of a run."""
    truncated: bool
    epistemic_substrings: int
    epistemic_words: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the share of the k-subsets of n completions that hold one of the c right ones.

    The unbiased estimate of "at least one of k new completions is right" (https://huggingface.co/papers/2107.03374).

    Raises `ValueError` unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass_at_k: c={c} right completions of n={n}.")
    if not 1 <= k <= n:
        raise ValueError(f"pass_at_k: k={k} must be between 1 and n={n}, the completions that were sampled.")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def powers_of_two(n: int) -> list[int]:
    """The k for which pass@k is shown: 1, 2, 4, ... and n itself."""
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})


def ratio_interval(
    sums: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """sum(sums) / sum(weights) over problems, with a percentile bootstrap interval over problems.

    Args:
        sums: one number per problem, such as its pass@k, or the sum of its completions' lengths.
        weights: what it is divided by, such as the number of its completions; 1 for each problem by default.
        seed: of the resampling.
        resamples: how often the problems are drawn, with replacement.
        level: share of the resampled estimates between `low` and `high`.

    Resamples whose weights sum to 0 are left out. The interval holds the estimate.
    """
    top = np.asarray(sums, dtype=np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, dtype=np.float64)
    if top.size == 0 or bottom.sum() == 0:
        return Interval(math.nan, math.nan, math.nan)
    value = float(top.sum() / bottom.sum())
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = generator.integers(top.size, size=top.size)
        weight = bottom[chosen].sum()
        if weight > 0:
            drawn.append(top[chosen].sum() / weight)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    # Rounding, or very few problems, must not put the estimate outside its own interval.
    return Interval(value, min(float(low), value), max(float(high), value))


def by_problem(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each problem, problems in ascending order."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.problem, []).append(sample)
    return [groups[problem] for problem in sorted(groups)]


def assessed(groups: Sequence[Sequence[Sample]]) -> list[Sequence[Sample]]:
    """The problems whose completions were all assessed."""
    return [group for group in groups if all(sample.correct is not None for sample in group)]


def summarise(
    samples: Sequence[Sample], ks: Sequence[int], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """All metrics by name. Problems with a completion that was not assessed do not count for pass@k.

    `pass@k` is in [0, 1]; `length` is in tokens; `truncated` is a share; `epistemic_substrings` and `epistemic_words`
    are per completion; `epistemic_rate` is whole words per 1000 tokens.
    """
    groups = by_problem(samples)
    judged = assessed(groups)
    options: Any = {"seed": seed, "resamples": resamples}
    found: dict[str, Interval] = {}
    for k in ks:
        values = [pass_at_k(len(group), sum(bool(s.correct) for s in group), k) for group in judged]
        found[f"pass@{k}"] = ratio_interval(values, **options)
    counts = [len(group) for group in groups]
    tokens = [sum(s.tokens for s in group) for group in groups]
    words = [sum(s.epistemic_words for s in group) for group in groups]
    found["length"] = ratio_interval(tokens, counts, **options)
    found["truncated"] = ratio_interval([sum(s.truncated for s in group) for group in groups], counts, **options)
    substrings = [sum(s.epistemic_substrings for s in group) for group in groups]
    found["epistemic_substrings"] = ratio_interval(substrings, counts, **options)
    found["epistemic_words"] = ratio_interval(words, counts, **options)
    found["epistemic_rate"] = ratio_interval([1000.0 * w for w in words], tokens, **options)
    return found


def shown(name: str, interval: Interval) -> str:
    """An interval as text: shares in per cent, everything else as it is."""
    if math.isnan(interval.value):
        return "-"
    is_share = name.startswith("pass@") or name == "truncated"
    numbers = [100 * x if is_share else x for x in (interval.value, interval.low, interval.high)]
    value, low, high = (f"{x:.1f}" if abs(x) < 1000 else f"{x:.0f}" for x in numbers)
    return f"{value}{' %' if is_share else ''} [{low}, {high}]"
