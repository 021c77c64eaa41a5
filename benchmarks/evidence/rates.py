"""The learning rate of each method, by its sweep."""

from statistics import mean
from typing import Any

from evidence.measures import area


def area_of(result: dict[str, Any], metric: str) -> float:
    """The area under one curve of a run."""
    return area([point["step"] for point in result["curve"]], [point[metric] for point in result["curve"]])


def chosen_rate(plan: list[dict[str, Any]], results: dict[str, dict[str, Any]], task: str, method: str) -> float | None:
    """The rate with the largest area under pass@1, the smallest of equal ones; `None` until the sweep is finished.

    Raises `ValueError` where the plan has no sweep for the method.
    """
    runs = [r for r in plan if (r["part"], r["task"], r["method"]) == ("rates", task, method)]
    if not runs:
        raise ValueError(f"The plan has no sweep of learning rates for {method} on {task}: add one, or give it an lr.")
    if any(run["id"] not in results for run in runs):
        return None
    areas: dict[float, list[float]] = {}
    for run in runs:
        areas.setdefault(run["lr"], []).append(area_of(results[run["id"]], "pass1"))
    return max(sorted(areas), key=lambda rate: mean(areas[rate]))
