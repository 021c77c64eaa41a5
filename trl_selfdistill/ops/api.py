"""The two public ops: checks, choice of the back end, tokens of weight 0 left out."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import chunked, divergence_rows, logps, reference, rows
from .checks import check_teacher_head, checked, targets_in_range
from .chunked import RowOps
from .types import (
    CLIPPED,
    DIVERGENCE,
    STUDENT_ENTROPY,
    STUDENT_LOGPS,
    TEACHER_ENTROPY,
    TEACHER_LOGPS,
    DivergenceOutput,
    Settings,
)


@checked
def linear_divergence(
    student_hidden: Float[Tensor, "N H"],
    teacher_hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    beta: float = 0.0,
    entry_clip: float | None = None,
    token_clip: float | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    token_weights: Float[Tensor, " N"] | None = None,
    targets: Int[Tensor, " N"] | None = None,
    teacher_weight: Float[Tensor, "V H"] | None = None,
    teacher_bias: Float[Tensor, " V"] | None = None,
    impl: str = "auto",
    chunk_bytes: int | None = None,
) -> DivergenceOutput:
    r"""Weighted divergence between the next-token distributions of two hidden streams that share one LM head.

    $$ L = \sum_n \omega_n w_n D_n, \quad D_n = \sum_v \min(\ell_{n,v}, \tau), \quad w_n = \min(1, c / D_n) $$

    with the entries $\ell$ of KL(teacher || student) for `beta=0`, of KL(student || teacher) for `beta=1` and of the
    Jensen-Shannon divergence with mixture $m = (1 - \beta) p_s + \beta p_t$ between. Logits are
    `softcap * tanh((h W^T + b) * logit_scale / softcap) / temperature`, always in fp32 (fp64 for fp64 inputs). OPSD,
    https://arxiv.org/abs/2601.18734.

    The gradient goes to `student_hidden`, `weight` and `bias`; the teacher stream has none, also not through the
    shared head. It is computed in the forward pass, which is why the weights of the tokens are an argument.

    Args:
        student_hidden: (N, H), the stream that is trained. N may be 0.
        teacher_hidden: (N, H).
        weight: (V, H) of the LM head; gather a sharded head first (`output_head`).
        bias: (V,), may hold -inf for entries that are never sampled.
        beta: in [0, 1].
        entry_clip: tau, nats, at least 0. Upper bound of each vocabulary entry; a clipped entry has no gradient of its
            own. The divergence may then be negative.
        token_clip: c, nats, positive. Bounds the share of a token in the loss, keeps its direction; w has no gradient.
        temperature: positive; logits are divided by it.
        logit_scale: multiplies the logits before the soft-cap.
        softcap: positive, in logit units.
        token_weights: (N,), the factors omega, 1 by default. Tokens of weight 0 cost nothing and report zeros.
        targets: (N,), token ids in [0, V), for the two log-probabilities. Those of tokens of weight 0 are not read.
        teacher_weight: (V, H), the teacher's own head, where its weights are not the student's (a frozen copy, an
            average). It costs a second product a chunk. None: both share `weight`.
        teacher_bias: (V,), with `teacher_weight` and `bias`.
        impl: "auto" ("liger" on CUDA, "torch" elsewhere), "reference", "torch" or "liger".
        chunk_bytes: memory for the logits of one token chunk, 10 bytes per row and vocabulary entry. Default 1.5 GiB
            on an accelerator, 256 rows on a CPU. `reference` has no chunks and ignores it.

    Returns:
        `DivergenceOutput`: `loss` with gradient; without gradient, (N,) each and in nats: `divergence` D
        (entry-clipped, not token-clipped), the entropies, `clipped_fraction` (the teacher's probability mass on
        clipped entries, in [0, 1], for every beta) and, with targets, `student_logps` and `teacher_logps`.

    Raises:
        ValueError: a number out of range, shapes that do not fit, a back end that is unknown or cannot run here, and on
            a CPU a target outside [0, V). On an accelerator that check would wait for the device: such a token gets NaN
            from "liger", and an assertion of the device from the others.
    """
    settings = Settings(beta, entry_clip, token_clip, temperature, logit_scale, softcap)
    teacher_head = check_teacher_head(weight, bias, teacher_weight, teacher_bias)
    total = student_hidden.shape[0]
    if token_weights is None:
        token_weights = student_hidden.new_ones(total, dtype=torch.float32)
        keep = slice(None)
    else:
        token_weights = token_weights.detach()
        keep = token_weights.nonzero().squeeze(-1)
    if targets is not None:
        way_out = "give the tokens that are not scored token_weights 0, or leave them out"
        targets = targets_in_range(targets[keep], weight.shape[0], way_out)
    loss, kept = _back_end(impl, student_hidden.device).divergence(
        student_hidden[keep],
        teacher_hidden[keep],
        weight,
        bias,
        teacher_head,
        token_weights[keep],
        targets,
        settings,
        chunk_bytes,
    )
    stats = kept.new_zeros(6, total)
    stats[:, keep] = kept
    return DivergenceOutput(
        loss=loss,
        divergence=stats[DIVERGENCE],
        student_entropy=stats[STUDENT_ENTROPY],
        teacher_entropy=stats[TEACHER_ENTROPY],
        clipped_fraction=stats[CLIPPED],
        student_logps=None if targets is None else stats[STUDENT_LOGPS],
        teacher_logps=None if targets is None else stats[TEACHER_LOGPS],
    )


@checked
def linear_logps(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    targets: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    impl: str = "auto",
    chunk_bytes: int | None = None,
    entropy_grad: bool = True,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each target and entropy of its distribution, in nats, from fp32 logits.

    Both carry gradients to `hidden`, `weight` and `bias` where these require them. A frozen head costs 4 N H V floating
    point operations in all (6 with the gradient of the entropy), a trainable one 8, no gradient 2; see `logps`.
    Arguments and errors are those of `linear_divergence`, and:

    Args:
        entropy_grad: False where the entropy is a metric and not part of the loss: it is then marked as not
            differentiable, and with a frozen head its gradient's product is saved.

    Returns:
        two tensors (N,), fp32 (fp64 for fp64 inputs): log p(target) <= 0 and entropy in [0, log V].
    """
    settings = Settings(temperature=temperature, logit_scale=logit_scale, softcap=softcap)
    targets = targets_in_range(targets, weight.shape[0], "leave out the tokens that are not scored")
    back_end = _back_end(impl, hidden.device)
    return back_end.logps(hidden, weight, bias, targets, settings, chunk_bytes, entropy_grad)


class _BackEnd(NamedTuple):
    divergence: Callable[..., Any]  # (loss, statistics (6, N))
    logps: Callable[..., Any]  # (log-probabilities, entropies)


def _back_end(impl: str, device: torch.device) -> _BackEnd:
    if impl == "auto":
        impl = "liger" if device.type == "cuda" else "torch"
    if impl == "reference":
        return _BackEnd(reference.linear_divergence, reference.linear_logps)
    if impl == "liger":
        from . import liger  # imports Triton, which a CPU-only install does not need

        row_ops = liger.row_ops(device)
    else:
        row_ops = RowOps(divergence_rows.divergence_rows, rows.logps_rows)
    return _BackEnd(partial(chunked.linear_divergence, row_ops), partial(logps.linear_logps, row_ops))
