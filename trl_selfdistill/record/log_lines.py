"""What a run has logged, as the health checks look at it. Plain Python."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

Entry = Mapping[str, Any]
"""One log line of the training: metrics by name, and `step`."""
Measure = Callable[[Entry], float | None]
"""A number of one log line, `None` where it has none."""
STEPS = 5
"""Optimiser steps that count as the first and as the last ones: one batch of rollouts alone may be odd."""


def value(entry: Entry, name: str) -> float | None:
    """The metric `name` of a log line; `None` where it was not logged or is no number."""
    found = entry.get(name)
    return None if found is None or math.isnan(found) else float(found)


def metric(name: str) -> Measure:
    return lambda entry: value(entry, name)


def ratio(name: str, other: str) -> Measure:
    """`name` divided by `other`, where that is above 0."""

    def divided(entry: Entry) -> float | None:
        above, below = value(entry, name), value(entry, other)
        return above / below if above is not None and below else None

    return divided


class History:
    """The log lines of a run's training, oldest first. A line stands for all steps since the one before."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries

    @property
    def step(self) -> int:
        return self.entries[-1]["step"]

    def last(self, measure: Measure) -> float | None:
        """The mean over the last `STEPS` steps; `None` where the newest line has no such number."""
        if measure(self.entries[-1]) is None:
            return None
        start = self.step - STEPS
        found = []
        for entry in reversed(self.entries):
            if entry["step"] <= start:
                break
            found.append(measure(entry))
        return fmean(number for number in found if number is not None)

    def first(self, measure: Measure) -> float | None:
        """The mean over the first `STEPS` steps, or as many as there are; `None` where they have no such number."""
        found = [measure(entry) for entry in self._until(self.entries[0]["step"] + STEPS)]
        numbers = [number for number in found if number is not None]
        return fmean(numbers) if numbers else None

    def drift(self, measure: Measure) -> tuple[float, float] | None:
        """(mean over the first `STEPS` steps, mean over the last); `None` until they lie apart."""
        if self.step < self.entries[0]["step"] + 2 * STEPS:
            return None
        last = self.last(measure)
        first = None if last is None else self.first(measure)
        return None if first is None or last is None else (first, last)

    def steps_in_a_row(self, holds: Callable[[Entry], bool]) -> int:
        """How many of the newest steps `holds` is true for."""
        for entry in reversed(self.entries):
            if not holds(entry):
                return self.step - entry["step"]
        return self.step

    def _until(self, end: int) -> Sequence[Entry]:
        count = next((i for i, entry in enumerate(self.entries) if entry["step"] >= end), len(self.entries))
        return self.entries[:count]
