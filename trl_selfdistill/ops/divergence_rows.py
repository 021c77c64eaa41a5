"""The rows of `linear_divergence` in plain torch: entries, clip, statistics, the gradient of the student's logits."""

import torch
from torch import Tensor

from .rows import adjust_, entropy, gradient, log_softmax_, tanh_squared_, token_blocks
from .types import (
    CLIPPED,
    DIVERGENCE,
    STUDENT_ENTROPY,
    STUDENT_LOGPS,
    TEACHER_ENTROPY,
    TEACHER_LOGPS,
    Settings,
    token_scale,
)


def _entries(ls: Tensor, lt: Tensor, ps: Tensor, pt: Tensor, s: Settings, work: Tensor) -> tuple[Tensor, Tensor]:
    """Divergence entries l and their derivatives dl / dlog p_s, (n, V) each: the first two of the three buffers.

    Without a clip a multiple of p_s drops out of the gradient; it is left out where equal streams then give exactly 0.
    """
    a, c, b = work
    beta, clipped = s.beta, s.entry_clip is not None
    if beta == 0.0:
        return torch.sub(lt, ls, out=a).mul_(pt), torch.neg(pt, out=c) if clipped else torch.sub(ps, pt, out=c)
    if beta == 1.0:
        torch.sub(ls, lt, out=a).mul_(ps)
        return a, torch.add(a, ps, out=c) if clipped else a
    # From the gap d = log p_t - log p_s, exact for small gaps and without overflow for large ones:
    # log(m / p_s) = max(d, 0) + r and log(m / p_t) = r - min(d, 0), r = log1p(k expm1(-|d|)), k = 1 - beta if d > 0
    # else beta.
    torch.sub(lt, ls, out=a)
    torch.abs(a, out=b).neg_().expm1_()
    if beta != 0.5:
        torch.sign(a, out=c).mul_(0.5 - beta).add_(0.5)
        b.mul_(c)
    else:
        b.mul_(0.5)
    b.log1p_()
    torch.clamp(a, min=0.0, out=c).add_(b).mul_(ps).mul_(beta - 1.0)
    b.sub_(a.clamp_(max=0.0)).mul_(pt).mul_(-beta)
    return torch.add(b, c, out=a), c


def _divergence(
    ls: Tensor, lt: Tensor, ps: Tensor, pt: Tensor, s: Settings, work: Tensor
) -> tuple[Tensor, Tensor | float, Tensor]:
    """Divergence (n,), clipped teacher mass (n,) and the derivatives of the entries that count, (n, V)."""
    entries, slopes = _entries(ls, lt, ps, pt, s, work)
    if s.entry_clip is not None:
        spare = work[2]
        clipped = torch.clamp(entries, max=s.entry_clip, out=spare).sum(-1)
        keep = entries.le_(s.entry_clip)
        fraction = pt.sum(-1) - torch.mul(pt, keep, out=spare).sum(-1)
        return clipped, fraction, slopes.mul_(keep)
    divergence = entries.sum(-1)
    # Bregman form: the rounding of the two normalisers then enters at second order only.
    if s.beta == 0.0:
        divergence += slopes.sum(-1)
    elif s.beta == 1.0:
        divergence += pt.sum(-1) - ps.sum(-1)
    return divergence, 0.0, slopes


def log_probs(
    student: Tensor,
    teacher: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    out: Tensor,
    s: Settings,
    scratch=None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Projections (n, V) become log-probabilities in place; fills entropies and log-probabilities of `out` (6, n).

    Returns log p_s, log p_t, the student's log-sum-exp (n, 1), p_s and p_t, the last two in `scratch` (2, n, V).
    """
    ps, pt = student.new_empty(2, *student.shape) if scratch is None else scratch
    for logits in (student, teacher):
        adjust_(logits, bias, s)
    lse = log_softmax_(student, ps)
    log_softmax_(teacher, pt)
    out[STUDENT_ENTROPY], out[TEACHER_ENTROPY] = entropy(student, ps), entropy(teacher, pt)
    if targets is not None:
        index = targets[:, None]
        out[STUDENT_LOGPS], out[TEACHER_LOGPS] = student.gather(1, index)[:, 0], teacher.gather(1, index)[:, 0]
    return student, teacher, lse, ps, pt


def divergence_rows(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    weights: Tensor,
    stats: Tensor,
    grad: Tensor | None,
    settings: Settings,
) -> None:
    """One token chunk.

    logits: (2n, V) fp32 or fp64 projections, the student's n rows first; overwritten. targets, weights: (n,).
    stats: (6, n), filled. grad: (n, V) or None, filled with the gradient of the weighted loss with respect to the
    student's projection; may be the student half of `logits`.
    """
    n, vocab = logits.shape[0] // 2, logits.shape[1]
    blocks = token_blocks(n, vocab, logits.device)
    scratch = logits.new_empty(5, blocks[0].stop, vocab)
    for block in blocks:
        ls, lt, out = logits[:n][block], logits[n:][block], stats[:, block]
        probs, work = scratch[:2, : len(ls)], scratch[2:, : len(ls)]
        labels = None if targets is None else targets[block]
        ls, lt, lse, ps, pt = log_probs(ls, lt, bias, labels, out, settings, probs)
        out[DIVERGENCE], out[CLIPPED], slopes = _divergence(ls, lt, ps, pt, settings, work)
        if grad is not None:
            scale = token_scale(weights[block], out[DIVERGENCE], settings.token_clip)
            gradient(slopes, ps, tanh_squared_(ls, lse, settings), scale, settings, out=grad[block])
