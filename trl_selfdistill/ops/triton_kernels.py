"""The Triton kernels behind `triton_rows`: what both ops share, and the gradient of `linear_logps`.

fp32 throughout; Python scalars arrive as fp32, never as fp64. `pre` multiplies the projection before the tanh of the
soft-cap, `post` after it.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check  # the run-time shape checks of the tests would wrap the kernel
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
@no_type_check  # the run-time shape checks of the tests would wrap the kernel
def load_row(row_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS: tl.constexpr):
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
    """Log-sum-exp, entropy and log-probability of the target, one program per row; rows n.. are the teacher's.

    A target outside the vocabulary gives NaN: nothing outside the row is read, and checking it on the host would wait
    for the device.
    """
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
        z = load_row(row_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
        if HAS_CAP:
            z = tanh(z)
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
        inside = (target >= 0) & (target < vocab)
        z = load_row(row_ptr, bias_ptr, target, inside, pre, HAS_BIAS)
        if HAS_CAP:
            z = tanh(z)
        tl.store(logps_ptr + stat, tl.where(inside, z * post - lse, float("nan")))


@triton.jit
@no_type_check  # the run-time shape checks of the tests would wrap the kernel
def logps_gradient_kernel(
    logits_ptr, row_stride, bias_ptr, targets_ptr, lse_ptr, entropy_ptr, by_logps_ptr, by_entropy_ptr,
    grad_ptr, grad_stride, vocab, pre, post, slope,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_LOGPS: tl.constexpr, HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """by_logps * d log p(target) + by_entropy * d entropy, by the projection; one program per row.

    d log p(target) / dz_v = [v = target] - p_v and d entropy / dz_v = -p_v (log p_v + entropy). NaN where the target
    lies outside the vocabulary. The gradient may be written over the logits.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    lse = tl.load(lse_ptr + row)
    if HAS_LOGPS:
        target = tl.load(targets_ptr + row)
        by_logps = tl.load(by_logps_ptr + row)
        by_logps = tl.where((target >= 0) & (target < vocab), by_logps, float("nan"))
    if HAS_ENTROPY:
        entropy = tl.load(entropy_ptr + row)
        by_entropy = tl.load(by_entropy_ptr + row)
    for start in range(0, vocab, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < vocab
        z = load_row(row_ptr, bias_ptr, offsets, mask, pre, HAS_BIAS)
        if HAS_CAP:
            z = tanh(z)
        log_p = tl.where(mask, z * post - lse, 0.0)
        p = tl.exp(log_p)
        grad = p * 0.0
        if HAS_LOGPS:
            grad += by_logps * (tl.where(offsets == target, 1.0, 0.0) - p)
        if HAS_ENTROPY:
            grad -= by_entropy * p * (log_p + entropy)
        grad *= slope
        if HAS_CAP:
            grad *= 1.0 - z * z
        tl.store(grad_ptr + row * grad_stride + offsets, grad.to(grad_ptr.dtype.element_ty), mask=mask)
