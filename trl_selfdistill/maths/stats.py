"""Statistics of per-token values."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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


def surprise(values: Float[Tensor, " N"]) -> tuple[float, float]:
    """Mean of -log p(y) - H over sampled tokens, in nats, and its standard error; NaN for fewer than two tokens.

    H is the entropy of the distribution p that y should have been drawn from. The mean is 0 but for chance where it
    was: E[-log p(y)] = H. Tokens drawn from a distribution q give KL(q || p) + H(q) - H(p).
    """
    if values.numel() < 2:
        return math.nan, math.nan
    x = values.double()
    return x.mean().item(), (x.std() / math.sqrt(x.numel())).item()


def weight_metrics(
    name: str, weights: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, clip: float
) -> dict[str, Float[Tensor, "B T"]]:
    """What an algorithm with clipped token weights logs: `name/weight` after the clip, and the shares that hit it.

    Args:
        name: prefix of the metrics.
        weights: before the clip.
        mask: tokens that have a weight; the others are NaN, which no mean counts.
        clip: half-width of the range around 1.
    """
    return {
        f"{name}/weight": masked_fill_nan(weights.clamp(1.0 - clip, 1.0 + clip), mask),
        f"{name}/clipped_low": masked_fill_nan((weights < 1.0 - clip).float(), mask),
        f"{name}/clipped_high": masked_fill_nan((weights > 1.0 + clip).float(), mask),
    }
