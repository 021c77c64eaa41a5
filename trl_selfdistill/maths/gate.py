"""AntiSD's gate as a value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median


@dataclass(frozen=True, slots=True)
class EntropyGate:
    """Schmitt trigger on the teacher's median entropy H (nats), a value: `step` returns the next gate.

    The first `warmup` batches only record H; H_warm is their median. After that the gate starts open, closes when
    H < close_ratio * H_warm, opens again when H >= H_warm, and otherwise stays as it is. AntiSD, Eq. 7,
    https://huggingface.co/papers/2605.11609.

    Differs: the paper does not say how the warm-up values are joined nor how the gate starts; here by their median, and
    open.

    `dataclasses.asdict(gate)` is the whole state and `EntropyGate(**state)` restores it, also from JSON.
    """

    warmup: int = 5
    close_ratio: float = 0.93
    history: Sequence[float] = ()
    """The entropies of the warm-up batches, at most `warmup` of them."""
    open: bool = True
    steps: int = 0
    """How many batches with a finite entropy the gate has seen."""

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ValueError(f"EntropyGate: warmup is {self.warmup}; at least 1 batch is needed to measure H_warm.")
        if not 0.0 <= self.close_ratio <= 1.0:
            raise ValueError(f"EntropyGate: close_ratio is {self.close_ratio}; it must be in [0, 1].")
        object.__setattr__(self, "history", tuple(self.history))  # JSON has no tuples

    @property
    def active(self) -> bool:
        """Whether the batch that was stepped last gets the term: False during the whole warm-up."""
        return self.open and self.steps > self.warmup

    @property
    def warm_entropy(self) -> float | None:
        """H_warm in nats, `None` until the warm-up is complete."""
        return median(self.history) if len(self.history) == self.warmup else None

    def step(self, entropy: float) -> "EntropyGate":
        """The gate after a batch whose median teacher entropy is `entropy` nats. NaN and inf leave it unchanged."""
        if not math.isfinite(entropy):
            return self
        if len(self.history) < self.warmup:
            return replace(self, history=(*self.history, entropy), steps=self.steps + 1)
        warm = median(self.history)
        is_open = entropy >= self.close_ratio * warm if self.open else entropy >= warm
        return replace(self, open=is_open, steps=self.steps + 1)
