"""The Triton kernel of `linear_divergence`'s entries, clips and gradient. Conventions as in `triton_kernels`."""

from typing import no_type_check

import triton
import triton.language as tl

from .triton_kernels import load_row, tanh


@triton.jit
@no_type_check  # the run-time shape checks of the tests would wrap the kernel
def _terms(ls, lt, mask, beta, entry_clip, MODE: tl.constexpr, HAS_ENTRY_CLIP: tl.constexpr):
    """Student probabilities, divergence entries, their derivatives by log p_s, teacher mass on clipped entries.

    Without a clip a multiple of p_s drops out of the gradient; it is left out where equal streams then give exactly 0.
    """
    ls = tl.where(mask, ls, -1e20)
    lt = tl.where(mask, lt, -1e20)
    ps = tl.exp(ls)
    pt = tl.exp(lt)
    gap = lt - ls
    if MODE == 0:
        entries = pt * gap
        slopes = -pt if HAS_ENTRY_CLIP else ps - pt
        bregman = ps - pt
    elif MODE == 1:
        entries = -ps * gap
        slopes = entries + ps if HAS_ENTRY_CLIP else entries
        bregman = pt - ps
    else:
        # log(m / p_s) = max(gap, 0) + r and log(m / p_t) = r - min(gap, 0); never from m, which may underflow.
        k = tl.where(gap > 0.0, 1.0 - beta, beta)
        r = tl.log(1.0 + k * (tl.exp(-tl.abs(gap)) - 1.0))
        slopes = (beta - 1.0) * ps * (tl.maximum(gap, 0.0) + r)
        entries = slopes - beta * pt * (r - tl.minimum(gap, 0.0))
        bregman = entries * 0.0
    clipped = entries * 0.0
    if HAS_ENTRY_CLIP:
        drop = entries > entry_clip
        clipped = tl.where(drop, pt, 0.0)
        slopes = tl.where(drop, 0.0, slopes)
        entries = tl.minimum(entries, entry_clip)
    else:
        entries += bregman  # the rounding of the two normalisers then enters at second order only
    return ps, entries, slopes, clipped


@triton.jit
@no_type_check  # the run-time shape checks of the tests would wrap the kernel
def divergence_kernel(
    logits_ptr, row_stride, bias_ptr, lse_ptr, weights_ptr, divergence_ptr, clipped_ptr, grad_ptr, grad_stride,
    n, vocab, pre, post, slope, beta, entry_clip, token_clip,
    MODE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_ENTRY_CLIP: tl.constexpr,
    HAS_TOKEN_CLIP: tl.constexpr, HAS_GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Divergence, clipped mass and the gradient of the student's projection, one program per token.

    The gradient k_v g_v - p_s,v sum_u k_u g_u needs the sum first, hence the second look at the row.
    """
    row = tl.program_id(0).to(tl.int64)
    student_ptr = logits_ptr + row * row_stride
    teacher_ptr = logits_ptr + (row + n) * row_stride
    lse_s = tl.load(lse_ptr + row)
    lse_t = tl.load(lse_ptr + row + n)
    divergence = tl.full([], 0.0, tl.float32)
    clipped = tl.full([], 0.0, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, vocab, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < vocab
        s = load_row(student_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
        t = load_row(teacher_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
        if HAS_CAP:
            s = tanh(s)
            t = tanh(t)
        _, entries, slopes, mass = _terms(
            s * post - lse_s, t * post - lse_t, mask, beta, entry_clip, MODE, HAS_ENTRY_CLIP
        )
        divergence += tl.sum(entries, axis=0)
        clipped += tl.sum(mass, axis=0)
        total += tl.sum(slopes, axis=0)
    tl.store(divergence_ptr + row, divergence)
    tl.store(clipped_ptr + row, clipped)
    if HAS_GRAD:
        scale = tl.load(weights_ptr + row) * slope
        if HAS_TOKEN_CLIP:
            scale *= token_clip / tl.maximum(divergence, token_clip)
        for start in range(0, vocab, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            mask = offsets < vocab
            s = load_row(student_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
            t = load_row(teacher_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
            if HAS_CAP:
                s = tanh(s)
                t = tanh(t)
            ps, _, slopes, _ = _terms(s * post - lse_s, t * post - lse_t, mask, beta, entry_clip, MODE, HAS_ENTRY_CLIP)
            grad = (slopes - ps * total) * scale
            if HAS_CAP:
                grad *= 1.0 - s * s
            tl.store(grad_ptr + row * grad_stride + offsets, grad.to(grad_ptr.dtype.element_ty), mask=mask)
