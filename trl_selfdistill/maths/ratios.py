"""The teacher's opinion of a token as a number. Pure, torch alone."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_MAX_EXPONENT = 20.0  # exp(20) is far outside every clip range and still finite in float32


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


def bounded_exp(exponent: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """exp(x) with x clamped to +-20, detached: finite for every pair of log-probabilities. In (0, exp(20)]."""
    return exponent.detach().clamp(-_MAX_EXPONENT, _MAX_EXPONENT).exp()


def clipped_weights(weights: Float[Tensor, "B T"], *, clip: float) -> Float[Tensor, "B T"]:
    """clip(w, 1 - clip, 1 + clip)."""
    return weights.clamp(1.0 - clip, 1.0 + clip)


def mean_logps(logps: Float[Tensor, "B K T"]) -> Float[Tensor, "B T"]:
    """log of the mean probability over K teacher prompts, detached, in float64: differences of it are small.

    NaN marks a prompt that a row lacks. It is left out, and the result is NaN where a row lacks all of them.
    """
    found, missing = logps.detach().double(), logps.isnan()
    return found.masked_fill(missing, -math.inf).logsumexp(dim=1) - (~missing).sum(dim=1).log()
