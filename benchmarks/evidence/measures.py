"""What an evaluation reports, from samples that were judged. Plain Python and numpy."""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from evidence.task import Judgement, Task

SAMPLES = 16


def pass_at(k: int, right: int, samples: int) -> float:
    """Chance that k of the samples, drawn without putting back, hold a right one: the unbiased estimate of pass@k."""
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def evaluation(task: Task, problems: Sequence[Any], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Means over the test problems; `right` and `distinct` hold one number a problem, for the bootstrap."""
    judged = [[task.judge(p, text) for text in own] for p, own in zip(problems, texts, strict=True)]
    flat: list[Judgement] = [judgement for own in judged for judgement in own]
    right = [sum(j.right for j in own) for own in judged]
    distinct = [len({j.route for j in own if j.right}) for own in judged]
    met = sum(j.wrong_facts for j in flat)
    return {
        **means(right, distinct, samples=len(texts[0])),
        "legal": sum(j.legal for j in flat) / len(flat),
        "length": float(np.mean([len(text.split()) for own in texts for text in own])),
        "wrong_facts": met / len(flat),
        "repaired": sum(j.repaired for j in flat) / met if met else 0.0,
        "right": right,
        "distinct": distinct,
    }


def means(right: Sequence[int], distinct: Sequence[int], *, samples: int) -> dict[str, float]:
    """pass@1, pass@8 and distinct right routes, of the numbers of right samples and routes of each problem."""
    return {
        "pass1": float(np.mean(right)) / samples,
        "pass8": float(np.mean([pass_at(8, count, samples) for count in right])),
        "routes": float(np.mean(distinct)),
    }


def area(steps: Sequence[int], values: Sequence[float]) -> float:
    """Mean height of the curve between its first and its last step, by the trapezoid rule."""
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))
