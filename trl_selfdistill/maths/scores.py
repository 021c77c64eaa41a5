"""What an algorithm is given."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from trl_selfdistill.maths.ratios import log_ratio


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
