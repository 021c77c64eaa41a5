"""`linear_divergence` in token chunks, the same for every back end: one projection of whole vocabulary rows per stream
and chunk serves all statistics and the gradient, which is computed in the forward pass (as Liger's fused losses do).

8 N H V floating point operations, 6 N H V with a frozen head, 4 N H V without gradients. Extra memory: one chunk of
logits and, with a trainable head, its fp32 gradient (V, H).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .projection import addmm_into, chunk_rows, mm_into, operand_dtypes
from .types import DIVERGENCE, Settings


@dataclass(frozen=True)
class RowOps:
    """One back end: `divergence_rows.divergence_rows` and `rows.logps_rows`, or what does the same."""

    divergence: Callable[..., None]
    logps: Callable[..., None]


class Operands:
    """Head and chunk geometry of one call."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtypes: tuple[torch.dtype, torch.dtype],
        total: int,
        chunk_bytes: int | None,
    ) -> None:
        """dtypes: of `operand_dtypes`. total: tokens of the call."""
        self.rounded, self.read = dtypes
        self.full = torch.float64 if self.read is torch.float64 else torch.float32
        self.weight = self.cast(weight)
        self.bias = None if bias is None else bias.detach().to(self.rounded).to(self.full).contiguous()
        self.rows = min(chunk_rows(chunk_bytes, weight.shape[0], weight.device), max(total, 1))
        self.chunks = [slice(i, min(i + self.rows, total)) for i in range(0, total, self.rows)]

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.rounded).to(self.read)

    def project(self, logits: Tensor, both: Tensor, n: int, head: tuple[Tensor, Tensor | None] | None) -> None:
        """Projections of n student and n teacher rows, in one product where they share the head."""
        if head is None:
            mm_into(logits, both, self.weight.t())
            return
        weight, extra_bias = head
        mm_into(logits[:n], both[:n], self.weight.t())
        mm_into(logits[n:], both[n:], weight.t())
        if extra_bias is not None:
            logits[n:] += extra_bias

    def buffer(self, streams: int) -> Tensor:
        return self.weight.new_empty(streams * self.rows, self.weight.shape[0], dtype=self.full)

    def zeros(self, *shape: int) -> Tensor:
        return self.weight.new_zeros(*shape, dtype=self.full)


class Gradients:
    """Accumulators of a gradient by hidden states, head and bias, in full precision; None where none is wanted.

    own_rows: the gradient of the projections must not go into the memory of the logits.
    """

    def __init__(self, op: Operands, total: int, wants: tuple[bool, bool, bool], own_rows: bool = False) -> None:
        vocab, width = op.weight.shape
        self.op = op
        self.hidden = op.zeros(total, width) if wants[0] else None
        self.weight = op.zeros(vocab, width) if wants[1] else None
        self.bias = op.zeros(vocab) if wants[2] else None
        own_rows = own_rows or op.read is not op.full
        self.rows = op.weight.new_empty(op.rows, vocab) if any(wants) and own_rows else None
        self.wanted = any(wants)

    def rows_of(self, logits: Tensor, n: int) -> Tensor | None:
        """Where the gradient of the first n rows of projections goes: into their own memory if dtypes allow."""
        if not self.wanted:
            return None
        return logits[:n] if self.rows is None else self.rows[:n]

    def add(self, rows: Tensor, hidden: Tensor, chunk: slice) -> None:
        if self.hidden is not None:
            mm_into(self.hidden[chunk], rows, self.op.weight)
        if self.weight is not None:
            addmm_into(self.weight, rows.t(), hidden)
        if self.bias is not None:
            self.bias += rows.sum(0, dtype=self.op.full)


class _LinearDivergence(torch.autograd.Function):
    """(loss, statistics); the teacher stream has no gradient, also not through the shared head."""

    @staticmethod
    def forward(ctx, student, weight, bias, teacher, head, token_weights, targets, settings, row_op, op, grad_on):
        # needs_input_grad stays True under no_grad, so the caller says whether grad mode is on.
        wants = tuple(grad_on and need for need in ctx.needs_input_grad[:3])
        stats = op.zeros(6, student.shape[0])
        weights = token_weights.to(op.full)
        grads = Gradients(op, student.shape[0], wants)
        buffer = op.buffer(2)
        for chunk in op.chunks:
            both = torch.cat((op.cast(student[chunk]), op.cast(teacher[chunk])))
            n = both.shape[0] // 2
            logits = buffer[: 2 * n]
            op.project(logits, both, n, head)
            rows = grads.rows_of(logits, n)
            labels = None if targets is None else targets[chunk]
            row_op(logits, op.bias, labels, weights[chunk], stats[:, chunk], rows, settings)
            if rows is not None:
                grads.add(rows, both[:n], chunk)
        # w * D = min(D, token_clip), because w = token_clip / D above the clip.
        divergence = (
            stats[DIVERGENCE] if settings.token_clip is None else stats[DIVERGENCE].clamp(max=settings.token_clip)
        )
        ctx.save_for_backward(grads.hidden, grads.weight, grads.bias)
        ctx.dtypes = (student.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(stats)
        return (weights * divergence).sum(), stats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, _):
        # One pass: scaled in full precision (a loss scale comes before the cast to fp16), stored as the input's dtype.
        scaled = [
            None if g is None else torch.mul(g, upstream, out=torch.empty_like(g, dtype=dtype))
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, *(None,) * 8)


def linear_divergence(
    row_ops: RowOps,
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_head: tuple[Tensor, Tensor | None] | None,
    token_weights: Tensor,
    targets: Tensor | None,
    settings: Settings,
    chunk_bytes: int | None,
) -> tuple[Tensor, Tensor]:
    """(loss, statistics (6, N) in the order of `types`), the loss with gradient."""
    op = Operands(weight, bias, operand_dtypes(student, teacher, weight), student.shape[0], chunk_bytes)
    grad_on = torch.is_grad_enabled()
    # Operands are cast by hand: autocast would turn the fp32 products below into bf16 ones.
    with torch.autocast(student.device.type, enabled=False):
        return _LinearDivergence.apply(
            student,
            weight,
            bias,
            teacher.detach(),
            None if teacher_head is None else tuple(t if t is None else op.cast(t) for t in teacher_head),
            token_weights,
            targets,
            settings,
            row_ops.divergence,
            op,
            grad_on,
        )
