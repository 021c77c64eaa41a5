"""The two Triton kernels behind `triton_rows`. fp32 throughout; Python scalars arrive as fp32, never as fp64.

`pre` multiplies the projection before the tanh of the soft-cap, `post` after it.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check  # the run-time shape checks of the tests would wrap the kernel
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
@no_type_check  # the run-time shape checks of the tests would wrap the kernel
def _load(row_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS: tl.constexpr):
    """Projection of one block after bias and scale; soft-cap (if any) and temperature are still to come."""
    x = tl.load(row_ptr + offsets, mask=mask, other=0.0)
    if HAS_BIAS:
        x = tl.maximum(x + tl.load(bias_ptr + offsets, mask=mask, other=0.0), -1e20)
    return x * pre


@triton.jit
@no_type_check  # the run-time shape checks of the tests would wrap the kernel
def row_stats_kernel(
    logits_ptr, row_stride, bias_ptr, targets_ptr, entropy_ptr, logps_ptr, stat_stride, lse_ptr, n, vocab, pre, post,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_TARGETS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp, entropy and log-probability of the target, one program per row; rows n.. are the teacher's."""
    row = tl.program_id(0).to(tl.int64)
    token = row % n
    stat = (row // n) * stat_stride + token
    row_ptr = logits_ptr + row * row_stride
    # total = sum exp(z - top), moment = sum exp(z - top) (z - top); entropy = log total - moment / total.
    top = tl.full([], -1e20, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    moment = tl.full([], 0.0, tl.float32)
    for start in range(0, vocab, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < vocab
        z = _load(row_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
        if HAS_CAP:
            z = _tanh(z)
        z = tl.where(mask, z * post, -1e30)
        new_top = tl.maximum(top, tl.max(z, axis=0))
        shift = top - new_top
        e = tl.exp(z - new_top)
        moment = tl.exp(shift) * (moment + shift * total) + tl.sum(e * (z - new_top), axis=0)
        total = tl.exp(shift) * total + tl.sum(e, axis=0)
        top = new_top
    lse = top + tl.log(total)
    tl.store(lse_ptr + row, lse)
    tl.store(entropy_ptr + stat, tl.log(total) - moment / total)
    if HAS_TARGETS:
        target = tl.load(targets_ptr + token)
        z = _load(row_ptr, bias_ptr, target, target < vocab, pre, HAS_BIAS)
        if HAS_CAP:
            z = _tanh(z)
        tl.store(logps_ptr + stat, z * post - lse)


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
        s = _load(student_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
        t = _load(teacher_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
        if HAS_CAP:
            s = _tanh(s)
            t = _tanh(t)
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
            s = _load(student_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
            t = _load(teacher_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
            if HAS_CAP:
                s = _tanh(s)
                t = _tanh(t)
            ps, _, slopes, _ = _terms(s * post - lse_s, t * post - lse_t, mask, beta, entry_clip, MODE, HAS_ENTRY_CLIP)
            grad = (slopes - ps * total) * scale
            if HAS_CAP:
                grad *= 1.0 - s * s
            tl.store(grad_ptr + row * grad_stride + offsets, grad.to(grad_ptr.dtype.element_ty), mask=mask)
