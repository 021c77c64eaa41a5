"""The two public ops: checks, choice of the back end, tokens of weight 0 left out."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import chunked, reference, rows
from .checks import check_arguments, check_teacher_head
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
        targets: (N,), token ids in [0, V), for the two log-probabilities.
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
        ValueError: a number out of range, shapes that do not fit, a back end that is unknown or cannot run here.
    """
    settings = Settings(beta, entry_clip, token_clip, temperature, logit_scale, softcap)
    per_token = {"targets": targets, "token_weights": token_weights}
    check_arguments(impl, chunk_bytes, weight, bias, per_token, student_hidden, teacher_hidden)
    teacher_head = check_teacher_head(weight, bias, teacher_weight, teacher_bias)
    total = student_hidden.shape[0]
    if token_weights is None:
        token_weights = student_hidden.new_ones(total, dtype=torch.float32)
        keep = slice(None)
    else:
        token_weights = token_weights.detach()
        keep = token_weights.nonzero().squeeze(-1)
    loss, kept = _back_end(impl, student_hidden.device).divergence(
        student_hidden[keep],
        teacher_hidden[keep],
        weight,
        bias,
        teacher_head,
        token_weights[keep],
        None if targets is None else targets[keep],
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
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each target and entropy of its distribution, in nats, from fp32 logits.

    For scoring: the outputs never carry a gradient, whatever the inputs require. Arguments and errors are those of
    `linear_divergence`.

    Returns:
        two tensors (N,), fp32 (fp64 for fp64 inputs): log p(target) <= 0 and entropy in [0, log V].
    """
    settings = Settings(temperature=temperature, logit_scale=logit_scale, softcap=softcap)
    check_arguments(impl, chunk_bytes, weight, bias, {"targets": targets}, hidden)
    stats = _back_end(impl, hidden.device).logps(hidden, weight, bias, targets, settings, chunk_bytes)
    return stats[0], stats[1]


class _BackEnd(NamedTuple):
    divergence: Callable[..., Any]  # (loss, statistics (6, N))
    logps: Callable[..., Any]  # statistics (2, N)


def _back_end(impl: str, device: torch.device) -> _BackEnd:
    if impl == "auto":
        impl = "liger" if device.type == "cuda" else "torch"
    if impl == "reference":
        return _BackEnd(reference.linear_divergence, reference.linear_logps)
    if impl == "liger":
        from . import liger  # imports Triton, which a CPU-only install does not need

        row_ops = liger.row_ops(device)
    else:
        row_ops = RowOps(rows.divergence_rows, rows.logps_rows)
    return _BackEnd(partial(chunked.linear_divergence, row_ops), partial(chunked.linear_logps, row_ops))
