"""What an algorithm is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from trl_selfdistill.maths.ratios import log_ratio


@dataclass(frozen=True, slots=True)
class ViewScores:
    """What the teacher said when it was shown one of several prompts. Rows without that view hold zeros."""

    logps: Float[Tensor, "B T"]
    """log-probability of the sampled tokens, nats."""
    entropy: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    """Tokens that the model wrote, in rows that have this view."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Everything that an algorithm may look at. Rows without a teacher hold zeros and are False in `mask`."""

    student_logps: Float[Tensor, "B T"]
    teacher_logps: Float[Tensor, "B T"]
    """Those of the first view; NaN, as everything of a teacher, for an algorithm that asks none."""
    student_entropy: Float[Tensor, "B T"]
    teacher_entropy: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    """Completion tokens that the model wrote (no padding, no tool output) in rows that have at least one view, or in
    all rows of an algorithm that asks no teacher."""
    correct: Bool[Tensor, " B"]
    median_entropy: float
    """Median teacher entropy in nats over the valid tokens of the generation batch in all processes; NaN when no row
    has a teacher."""
    training: bool
    starts_batch: bool = True
    """Whether these are the first rows of a new batch of rollouts: what steps once per batch steps now."""
    pass_rate: Float[Tensor, " B"] | None = None
    """Share of correct rollouts in each row's group, NaN where none was assessed."""
    step: int = 0
    """Optimiser steps made so far, for schedules."""
    old_logps: Float[Tensor, "B T"] | None = None
    """Under a divergence, whose student is the policy in training: the log-probabilities of the policy that wrote the
    rollouts, where TRL keeps them because it may be an older one."""
    views: Mapping[str, ViewScores] = field(default_factory=dict)
    """The scores of each view by name."""

    @property
    def log_ratio(self) -> Float[Tensor, "B T"]:
        """u_t = t_t - s_t; NaN where no teacher is asked."""
        return log_ratio(self.student_logps, self.teacher_logps)
