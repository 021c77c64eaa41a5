"""Weights of whole rollouts, and of tokens by their place."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def paced_weights(pass_rate: Float[Tensor, " B"], *, a: float = 1.0, b: float = 1.0) -> Float[Tensor, " B"]:
    """w(p) = p^a (1 - p)^b, divided by its maximum over p, so that w is in [0, 1]. PACED.

    For a = b = 1 that is 4 p (1 - p): prompts that are always or never solved weigh nothing, those solved half the time
    weigh 1. https://huggingface.co/papers/2603.11178.

    Args:
        pass_rate: p, the share of correct rollouts in the group, in [0, 1].
        a: exponent of p, at least 0; larger prefers easy prompts.
        b: exponent of 1 - p, at least 0; larger prefers hard prompts.

    Raises `ValueError` for a negative exponent.
    """
    if a < 0 or b < 0:
        raise ValueError(f"paced_weights: a={a} and b={b} must not be negative.")
    p = pass_rate.detach()
    peak = a / (a + b) if a + b > 0 else 0.5
    return p.pow(a) * (1.0 - p).pow(b) / (peak**a * (1.0 - peak) ** b)


def position_weights(
    mask: Bool[Tensor, "B T"], *, low: float = 0.25, middle: float = 0.30, width: float = 0.10
) -> Float[Tensor, "B T"]:
    """w_t = low + (1 - low) sigmoid((x_t - middle) / width): late tokens weigh more than early ones. PW-OPSD.

    x_t = (k - 1/2) / n for the k-th of a row's n tokens in `mask`, as in the released code.
    https://huggingface.co/papers/2605.21606.

    Args:
        mask: tokens that count; the weights of the others mean nothing.
        low: weight that the first tokens tend to, in [0, 1].
        middle: share of the row at which the weight is half way.
        width: how gradual the rise is, positive.

    In [low, 1].
    """
    place = (mask.cumsum(dim=1) - 0.5) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return low + (1.0 - low) * torch.sigmoid((place - middle) / width)


def skip_weights(mask: Bool[Tensor, "B T"], *, tokens: int) -> Float[Tensor, "B T"]:
    """0 for the first `tokens` of a row's tokens in `mask`, 1 for the others. SDFT's released code skips 3."""
    return (mask.cumsum(dim=1) > tokens).float()
