"""Row mathematics on Liger's public primitive `jsd_loss_and_grad`, registered with its dispatcher as `liger-jsd`.

The primitive gives every entry of the divergence and its derivative; clip and softmax Jacobian compose on top. Needs
three (n, V) temporaries more than `triton_rows`, which is preferred; of use where Liger has a kernel and we have none.
"""

from liger_kernel.backends import Capability, dispatch, register_op
from torch import Tensor

from .divergence_rows import log_probs
from .liger import DIVERGENCE_OP
from .rows import gradient, tanh_squared_
from .types import CLIPPED, DIVERGENCE, Settings, token_scale


@register_op(DIVERGENCE_OP, impl_name="liger-jsd", capability=Capability(modules=["triton"]), preference_rank=60)
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
    n = logits.shape[0] // 2
    ls, lt, lse, ps, pt = log_probs(logits[:n], logits[n:], bias, targets, stats, settings)
    # The primitive writes the derivatives over its first argument. Its CuTe DSL variant computes m log m, which is NaN
    # where both streams underflow, so the Triton one is named.
    inputs = (ls.clone(), lt, None, settings.beta, -100, 1.0)
    entries, slopes = dispatch("jsd_loss_and_grad", *inputs, impl="nvidia-triton")  # pyright: ignore[reportCallIssue]
    if settings.entry_clip is not None:
        drop = entries > settings.entry_clip
        stats[CLIPPED] = (drop * pt).sum(-1)
        entries, slopes = entries.clamp_(max=settings.entry_clip), slopes.masked_fill_(drop, 0.0)
    stats[DIVERGENCE] = entries.sum(-1)
    if grad is not None:
        scale = token_scale(weights, stats[DIVERGENCE], settings.token_clip)
        gradient(slopes, ps, tanh_squared_(ls, lse, settings), scale, settings, out=grad)
