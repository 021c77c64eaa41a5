"""Row mathematics as fused Triton kernels, registered with Liger's dispatcher as `nvidia-triton`.

Per (token, entry): 16 bytes read by the statistics and the divergence, 8 more read and 2 or 4 written by the gradient.
No (n, V) temporaries. The row is read in blocks of at most 4,096 entries, so that both streams stay in registers.
"""

from collections.abc import Sequence

from liger_kernel.backends import Capability, register_op
from liger_kernel.ops.utils import calculate_settings, device_context
from torch import Tensor

from .liger import DIVERGENCE_OP, LOGPS_OP
from .triton_divergence import divergence_kernel
from .triton_kernels import logps_gradient_kernel, row_stats_kernel
from .types import CLIPPED, DIVERGENCE, STUDENT_ENTROPY, STUDENT_LOGPS, RowGradient, Settings

MAX_BLOCK = 4096
TRITON = Capability(modules=["triton"])


def _factors(s: Settings) -> tuple[float, float]:
    """(before, after) the tanh; without a soft-cap everything comes before."""
    if s.softcap is None:
        return s.logit_scale / s.temperature, 1.0
    return s.logit_scale / s.softcap, s.softcap / s.temperature


def _stats(logits: Tensor, bias, targets, entropy: Tensor, logps: Tensor, stride: int, n: int, s: Settings) -> Tensor:
    rows, vocab = logits.shape
    lse = logits.new_empty(rows)
    block, warps = calculate_settings(min(vocab, MAX_BLOCK))
    with device_context(logits.device):
        row_stats_kernel[(rows,)](
            logits, logits.stride(0), logits if bias is None else bias, lse if targets is None else targets,
            entropy, logps, stride, lse, n, vocab, *_factors(s),
            HAS_BIAS=bias is not None, HAS_CAP=s.softcap is not None, HAS_TARGETS=targets is not None,
            BLOCK=block, num_warps=warps,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return lse


@register_op(DIVERGENCE_OP, impl_name="nvidia-triton", capability=TRITON, preference_rank=40)
def divergence_rows(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    weights: Tensor,
    stats: Tensor,
    grad: Tensor | None,
    settings: Settings,
) -> None:
    """`divergence_rows.divergence_rows` for fp32 logits."""
    s, n, vocab = settings, logits.shape[0] // 2, logits.shape[1]
    lse = _stats(logits, bias, targets, stats[STUDENT_ENTROPY], stats[STUDENT_LOGPS], stats.stride(0), n, s)
    block, warps = calculate_settings(min(vocab, MAX_BLOCK))
    out = logits if grad is None else grad
    with device_context(logits.device):
        divergence_kernel[(n,)](
            logits, logits.stride(0), logits if bias is None else bias, lse, weights,
            stats[DIVERGENCE], stats[CLIPPED], out, out.stride(0), n, vocab, *_factors(s),
            s.logit_scale / s.temperature, s.beta, s.entry_clip or 0.0, s.token_clip or 0.0,
            MODE={0.0: 0, 1.0: 1}.get(s.beta, 2), HAS_BIAS=bias is not None, HAS_CAP=s.softcap is not None,
            HAS_ENTRY_CLIP=s.entry_clip is not None, HAS_TOKEN_CLIP=s.token_clip is not None,
            HAS_GRAD=grad is not None, BLOCK=block, num_warps=warps,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip


@register_op(LOGPS_OP, impl_name="nvidia-triton", capability=TRITON, preference_rank=40)
def logps_rows(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    stats: Tensor,
    gradients: Sequence[RowGradient],
    settings: Settings,
) -> None:
    """`rows.logps_rows` for fp32 logits."""
    s, vocab = settings, logits.shape[1]
    lse = _stats(logits, bias, targets, stats[1], stats[0], 0, logits.shape[0], s)
    block, warps = calculate_settings(min(vocab, MAX_BLOCK))
    for by_logps, by_entropy, out in gradients:
        with device_context(logits.device):
            logps_gradient_kernel[(logits.shape[0],)](
                logits, logits.stride(0), logits if bias is None else bias, targets, lse, stats[1],
                lse if by_logps is None else by_logps, lse if by_entropy is None else by_entropy,
                out, out.stride(0), vocab, *_factors(s), s.logit_scale / s.temperature,
                HAS_BIAS=bias is not None, HAS_CAP=s.softcap is not None,
                HAS_LOGPS=by_logps is not None, HAS_ENTROPY=by_entropy is not None,
                BLOCK=block, num_warps=warps,  # pyright: ignore[reportCallIssue]
            )  # fmt: skip
