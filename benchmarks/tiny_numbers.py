"""Small functions on the logged values of a run, for the figures of the documentation. Plain Python."""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

RESULTS = Path(__file__).parent / "results/tiny_runs.json"
Results = dict[str, Any]
"""What `RESULTS` holds: see `tiny_runs.py`."""
WINDOW = 5
"""Steps that count as the first and as the last ones, as in the health checks."""


def percent(share: float, digits: int = 0) -> str:
    return f"{share * 100:.{digits}f} %"


def at_most(share: float, digits: int = 0) -> str:
    return f"at most {percent(share, digits)}" if share else "0 %"


def first(values: Sequence[float], count: int = WINDOW) -> float:
    """The mean over the first steps."""
    return fmean(values[:count])


def last(values: Sequence[float], count: int = WINDOW) -> float:
    """The mean over the last steps."""
    return fmean(values[-count:])


def trailing(values: Sequence[float]) -> list[float]:
    """The mean over `WINDOW` steps at each step at which a health check compares it with the first steps."""
    return [fmean(values[end - WINDOW : end]) for end in range(2 * WINDOW + 1, len(values) + 1)]


def drifts(values: Sequence[float]) -> list[float]:
    """`trailing` as a share of the first steps."""
    return [mean / first(values) for mean in trailing(values)]


def longest(flags: Iterable[bool]) -> int:
    """The most steps in a row."""
    most = now = 0
    for flag in flags:
        now = now + 1 if flag else 0
        most = max(most, now)
    return most


def after_warmup(steps: dict[str, list[Any]]) -> list[float]:
    """Whether AntiSD's gate was open, for each batch after the warm-up, whose last batch knows its entropy already."""
    pairs = zip(steps["antisd/gate"], steps["antisd/warm_entropy"], strict=True)
    return [gate for gate, warm in pairs if warm is not None][1:]


def together(parts: Iterable[str]) -> str:
    """a, b and c."""
    *start, end = parts
    return f"{', '.join(start)} and {end}" if start else end


def bullet(*sentences: str) -> str:
    """An item of a list."""
    return paragraph("- " + " ".join(sentences), indent="  ")


def paragraph(text: str, *, indent: str = "") -> str:
    """`text` in lines of the length that the pages have."""
    return textwrap.fill(text, 128, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
