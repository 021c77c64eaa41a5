"""What the tables of the page have in common."""

from typing import Any

from evidence.analysis import Difference

NOTHING = "Not run yet."
LABELS = {"pass1": "pass@1", "pass8": "pass@8", "routes": "routes", "entropy": "entropy"}


def interval(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]"


def table(head: list[str], rows: list[list[Any]]) -> str:
    if not rows:
        return NOTHING
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def numbers(d: Difference) -> list[Any]:
    return [d.pairs, f"{d.mean:+.3f}", interval(d.low, d.high), f"{d.deviation:.3f}"]
