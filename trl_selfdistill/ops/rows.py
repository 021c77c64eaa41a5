"""Row mathematics in plain torch: full vocabulary rows in, statistics and the gradient of the logits out.

What both ops share, and the rows of `linear_logps`; those of `linear_divergence` are in `divergence_rows`.

Works on any device and in fp64. On a CPU every pass runs over a block that stays in the cache and writes into reused
buffers: large temporaries are mapped and zeroed anew by the allocator each time, which doubles the cost of a pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .types import LOGIT_FLOOR, RowGradient, Settings

EXP_FLOOR = -80.0  # below, exp returns denormals or 0, many times slower on a CPU; exp(-80) = 2e-35 changes no sum
_CPU_BLOCK, _BLOCK = 2**18, 2**26  # entries per block


def token_blocks(n: int, vocab: int, device: torch.device) -> list[slice]:
    step = max(1, (_CPU_BLOCK if device.type == "cpu" else _BLOCK) // vocab)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def adjust_(logits: Tensor, bias: Tensor | None, s: Settings) -> None:
    """In place: bias, scale, soft-cap and temperature, in the order of the Hugging Face models."""
    if bias is not None:
        logits.add_(bias).clamp_(min=LOGIT_FLOOR)
    if s.softcap is not None:
        logits.mul_(s.logit_scale / s.softcap).tanh_().mul_(s.softcap / s.temperature)
    elif s.logit_scale != s.temperature:
        logits.mul_(s.logit_scale / s.temperature)


def log_softmax_(logits: Tensor, probs: Tensor) -> Tensor:
    """In place: logits become log-probabilities, `probs` is filled. Returns the log-sum-exp, (n, 1)."""
    top = logits.amax(-1, keepdim=True)
    torch.clamp(logits.sub_(top), min=EXP_FLOOR, out=probs).exp_()
    total = probs.sum(-1, keepdim=True)
    probs.div_(total)
    logits.sub_(total.log_())
    return top.add_(total)


def entropy(log_probs: Tensor, probs: Tensor) -> Tensor:
    return torch.linalg.vecdot(probs, log_probs).neg_()


def tanh_squared_(ls: Tensor, lse: Tensor, s: Settings) -> Tensor | None:
    """In place: log-probabilities (n, V) become tanh^2 of the soft-cap, the complement of its slope. None without."""
    return None if s.softcap is None else ls.add_(lse).mul_(s.temperature / s.softcap).square_()


def gradient(
    slopes: Tensor, probs: Tensor, tanh_squared: Tensor | None, scale: Tensor | None, s: Settings, *, out: Tensor
) -> None:
    """From derivatives with respect to log p, overwritten, to those with respect to the projection, times scale (n,).

    `out` may share the memory of `tanh_squared`.
    """
    slopes.addcmul_(probs, slopes.sum(-1, keepdim=True), value=-1.0)
    if tanh_squared is not None:
        slopes.addcmul_(slopes, tanh_squared, value=-1.0)
    factor = s.logit_scale / s.temperature
    torch.mul(slopes, factor if scale is None else (scale * factor)[:, None], out=out)


def logps_rows(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    stats: Tensor,
    gradients: Sequence[RowGradient],
    settings: Settings,
) -> None:
    """One token chunk of one stream.

    logits: (n, V) fp32 or fp64 projections, overwritten. targets: (n,). stats: (2, n), filled with the log-probability
    of the targets and the entropy. gradients: filled; `out` of the last may be `logits`.
    """
    blocks = token_blocks(logits.shape[0], logits.shape[1], logits.device)
    scratch = logits.new_empty(1 + len(gradients), blocks[0].stop, logits.shape[1])
    for block in blocks:
        ls, labels = logits[block], targets[block, None]
        probs, *slopes = scratch[:, : len(ls)]
        adjust_(ls, bias, settings)
        lse = log_softmax_(ls, probs)
        stats[0, block] = ls.gather(1, labels)[:, 0]
        stats[1, block] = entropy(ls, probs)
        for wanted, slope in zip(gradients, slopes, strict=True):
            _logps_slopes(wanted, block, ls, probs, labels, out=slope)
        tanh_squared = tanh_squared_(ls, lse, settings) if gradients else None
        for wanted, slope in zip(gradients, slopes, strict=True):
            gradient(slope, probs, tanh_squared, None, settings, out=wanted.out[block])


def _logps_slopes(wanted: RowGradient, block: slice, ls: Tensor, probs: Tensor, labels: Tensor, out: Tensor) -> None:
    """Derivatives with respect to log p, up to a multiple of p: 1 at the target, and -p log p for the entropy."""
    if wanted.entropy is None:
        out.zero_()
    else:
        torch.mul(probs, ls, out=out).mul_(-wanted.entropy[block, None])
    if wanted.logps is not None:
        out.scatter_add_(1, labels, wanted.logps[block, None])
