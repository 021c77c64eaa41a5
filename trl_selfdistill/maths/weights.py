"""Weights of whole rollouts."""

from jaxtyping import Float
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
