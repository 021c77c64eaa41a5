"""Values the ops take and return.

Shape legend of the whole package `ops`: N tokens, H hidden size, V vocabulary, n rows of one token chunk.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

# Stands in for a logit of -inf (masked or padded vocabulary): finite, so that `0 * (floor - floor)` is 0 and not NaN,
# and so far down that the probability underflows.
LOGIT_FLOOR = -1e20


@dataclass(frozen=True)
class Settings:
    """Numbers of one call, checked once: what turns a projection into log-probabilities and those into a divergence.

    Raises `ValueError` for a number outside its range.
    """

    beta: float = 0.0
    entry_clip: float | None = None
    token_clip: float | None = None
    temperature: float = 1.0
    logit_scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(
                f"beta must lie in [0, 1], got {self.beta}: 0 is KL(teacher || student), 1 is KL(student || teacher)."
            )
        if self.entry_clip is not None and not self.entry_clip >= 0.0:
            raise ValueError(f"entry_clip must be at least 0 or None (no clip), got {self.entry_clip}.")
        for name in ("token_clip", "temperature", "softcap"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                hint = "" if name == "temperature" else " or None to switch it off"
                raise ValueError(f"{name} must be positive{hint}, got {value}.")
        if not math.isfinite(self.logit_scale) or self.logit_scale == 0.0:
            raise ValueError(f"logit_scale must be a finite number other than 0, got {self.logit_scale}.")


@dataclass(frozen=True, eq=False)
class DivergenceOutput:
    """What `linear_divergence` returns. Divergences and entropies in nats; only `loss` carries a gradient.

    Tokens whose weight is 0 are not computed: their row is 0 in every field.
    """

    loss: Float[Tensor, ""]
    divergence: Float[Tensor, " N"]
    student_entropy: Float[Tensor, " N"]
    teacher_entropy: Float[Tensor, " N"]
    clipped_fraction: Float[Tensor, " N"]
    student_logps: Float[Tensor, " N"] | None = None
    teacher_logps: Float[Tensor, " N"] | None = None


class RowGradient(NamedTuple):
    """A gradient by the projection that a back end writes: `logps * d log p(target) + entropy * d entropy`.

    logps, entropy: (n,) coefficients, None for zeros. out: (n, V), filled.
    """

    logps: Tensor | None
    entropy: Tensor | None
    out: Tensor


# Rows of the (6, N) statistics that a back end fills, in the order of the fields above.
DIVERGENCE, STUDENT_ENTROPY, TEACHER_ENTROPY, CLIPPED, STUDENT_LOGPS, TEACHER_LOGPS = range(6)


def token_scale(weights: Tensor, divergence: Tensor, token_clip: float | None) -> Tensor:
    """Per-token factor of the gradient: `weights * min(1, token_clip / divergence)`, all of shape (N,)."""
    if token_clip is None:
        return weights
    return weights * (token_clip / divergence.clamp(min=token_clip))
