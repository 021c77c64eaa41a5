"""Pure maths on per-token log-probabilities. Imports torch and nothing else of ours.

Shapes, here and everywhere in the package: B rollouts of a batch, T completion tokens, N valid tokens, H hidden size,
V vocabulary, G rollouts of a group. Symbols: `s_t` and `t_t` are the log-probabilities of the sampled token under
student and teacher, `u_t = t_t - s_t` is their log-ratio. All logarithms are natural (nats).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def log_ratio(student_logps: Float[Tensor, "B T"], teacher_logps: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """u_t = log pi_T(y_t) - log pi_S(y_t): teacher minus student, detached, in at least float32.

    The only place where this sign is decided. Positive: the teacher, who has seen the context, finds the token more
    likely than the student does.
    """
    dtype = torch.promote_types(student_logps.dtype, torch.float32)
    return (teacher_logps.to(dtype) - student_logps.to(dtype)).detach()


def phi(log_ratio: Tensor) -> Tensor:
    """phi(u) = (softplus(u) - log 2) / 2, in [-log(2) / 2, inf); phi(0) = 0, phi'(0) = 1/4. Any shape.

    Minus phi is the derivative of the Jensen-Shannon generator at the probability ratio exp(-u), so -phi(u_t) is the
    policy-gradient advantage that ascends JSD(student, teacher). AntiSD, Eq. 6, https://huggingface.co/papers/2605.11609.
    """
    u = log_ratio.to(torch.promote_types(log_ratio.dtype, torch.float32))
    return 0.5 * (F.softplus(u) - math.log(2.0))


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Everything a token signal may look at. Rows without a teacher hold zeros and are False in `mask`."""

    student_logps: Float[Tensor, "B T"]
    teacher_logps: Float[Tensor, "B T"]
    student_entropy: Float[Tensor, "B T"]
    teacher_entropy: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    """Completion tokens that the model wrote (no padding, no tool output) in rows that have a teacher."""
    correct: Bool[Tensor, " B"]
    median_entropy: float
    """Median teacher entropy in nats over the valid tokens of all processes; NaN when no row has a teacher."""
    training: bool

    @property
    def log_ratio(self) -> Float[Tensor, "B T"]:
        """u_t = t_t - s_t."""
        return log_ratio(self.student_logps, self.teacher_logps)


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


def masked_fill_nan(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`values` with NaN where `mask` is False: the package's mark for "does not apply" in a per-token metric."""
    return torch.where(mask, values, torch.nan)


def summary(values: Float[Tensor, " N"]) -> dict[str, float]:
    """Mean, median (of the two middle values, their mean) and standard deviation of a flat tensor; NaN when empty."""
    if values.numel() == 0:
        return dict.fromkeys(("mean", "median", "std"), math.nan)
    x = values.double()
    return {"mean": x.mean().item(), "median": exact_median(x), "std": x.std(correction=0).item()}


def exact_median(values: Float[Tensor, " N"]) -> float:
    """Median by sorting; for an even count the mean of the two middle values. NaN when empty.

    `torch.quantile` refuses more than 16 M elements and `torch.median` takes the lower middle, so neither serves.
    """
    n = values.numel()
    if n == 0:
        return math.nan
    ordered = values.double().sort().values
    return ((ordered[(n - 1) // 2] + ordered[n // 2]) / 2).item()
