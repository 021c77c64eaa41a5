"""What each algorithm would do to the student's tokens under a context: pure functions of log-ratios.

The formulas are those of the algorithms' own files. Everything here describes the first step alone.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trl_selfdistill.algorithms.antisd import antisd_advantages
from trl_selfdistill.algorithms.rlrt import rlrt_weights
from trl_selfdistill.maths import clipped_weights

TOLERANCE = 0.1
"""Share by which the teacher's completions must be shorter or longer to count as such."""


@dataclass(frozen=True, slots=True)
class Split:
    """A mean on epistemic tokens and one on all others; NaN where there are none."""

    epistemic: float
    other: float


@dataclass(frozen=True, slots=True)
class Effects:
    """Of the three algorithms under one context."""

    log_ratio: Split
    """Mean u."""
    rlrt_weight: Split
    """Mean clipped weight of the tokens of right rollouts: above 1 they gain, below 1 they lose, against GRPO."""
    antisd_term: Split
    """Mean of -lambda phi(u), which is added to the advantage: above 0 tokens gain."""
    opsd_shift: Split
    """Mean of p_T(y) - p_S(y), by which KL(teacher || student) moves a token: above 0 it gets more probable."""
    divergence: float
    """Mean KL(teacher || student), nats a token."""


def split_mean(values: Float[Tensor, " N"], epistemic: Bool[Tensor, " N"]) -> Split:
    return Split(mean(values[epistemic]), mean(values[~epistemic]))


def mean(values: Tensor) -> float:
    return values.double().mean().item() if values.numel() else math.nan


def rlrt_token_weights(log_ratio: Float[Tensor, " N"], *, clip: float) -> Float[Tensor, " N"]:
    """RLRT's weights of tokens whose rollout is right and has a positive advantage."""
    return clipped_weights(rlrt_weights(torch.ones_like(log_ratio), log_ratio[:, None]), clip=clip)[:, 0]


def antisd_terms(log_ratio: Float[Tensor, " N"], *, strength: float) -> Float[Tensor, " N"]:
    """AntiSD's part of the advantage, the gate open."""
    return antisd_advantages(torch.zeros_like(log_ratio), log_ratio[:, None], strength=strength)[:, 0]


def effects_of(
    student_logps: Float[Tensor, " N"],
    teacher_logps: Float[Tensor, " N"],
    divergence: Float[Tensor, " N"],
    epistemic: Bool[Tensor, " N"],
    correct: Bool[Tensor, " N"],
    *,
    clip: float = 1.0,
    strength: float = 0.5,
) -> Effects:
    """All effects from the tokens of one context.

    Args:
        student_logps: of the sampled tokens, nats.
        teacher_logps: likewise.
        divergence: KL(teacher || student) at each token.
        epistemic: whether a token is part of an epistemic word.
        correct: whether its rollout is right.
        clip: `rlrt_clip`.
        strength: `antisd_strength`.
    """
    u = teacher_logps - student_logps
    weights = rlrt_token_weights(u[correct], clip=clip)
    return Effects(
        log_ratio=split_mean(u, epistemic),
        rlrt_weight=split_mean(weights, epistemic[correct]),
        antisd_term=split_mean(antisd_terms(u, strength=strength), epistemic),
        opsd_shift=split_mean(teacher_logps.exp() - student_logps.exp(), epistemic),
        divergence=mean(divergence),
    )


def length_effect(teacher: float, student: float, *, toward: bool) -> str:
    """ "shorter", "longer" or "same": where an algorithm would move the length of completions.

    Toward the teacher (OPSD) the student gets the teacher's length; away from it (RLRT, AntiSD) the opposite. Lengths
    within `TOLERANCE` of each other are the same. "unknown" where either is not known.
    """
    if math.isnan(teacher) or math.isnan(student) or student <= 0:
        return "unknown"
    change = teacher / student - 1.0
    if abs(change) <= TOLERANCE:
        return "same"
    return "longer" if (change > 0) == toward else "shorter"
