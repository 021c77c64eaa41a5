"""`linear_logps` in token chunks, the same for every back end, with gradients.

Frozen head: the gradients of each token's log-probability and entropy by its hidden state are computed in the forward
pass, while the logits are at hand; the backward pass scales them. 4 N H V floating point operations, 6 with the
gradient of the entropy.

Trainable head: the head's gradient sums over tokens whose factors are known in the backward pass only, so the logits
are computed again there. 8 N H V, with the gradient of the entropy or without.

Without gradients 2 N H V. Never more than one chunk of logits (two where the entropy's gradient needs its own).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .chunked import Gradients, Operands, RowOps
from .head import zero3_gathered
from .projection import mm_into, operand_dtypes
from .types import RowGradient, Settings


@dataclass(frozen=True)
class _Call:
    """What is no tensor in one call. dtypes: of the operands, as autocast said when the op was called."""

    row_op: Callable[..., None]
    settings: Settings
    dtypes: tuple[torch.dtype, torch.dtype]
    chunk_bytes: int | None
    entropy_grad: bool

    def operands(self, weight: Tensor, bias: Tensor | None, total: int) -> Operands:
        return Operands(weight, bias, self.dtypes, total, self.chunk_bytes)


@dataclass(frozen=True)
class _Wanted:
    """A gradient to accumulate: that of `sum(logps * log p + entropy * H)`, with (N,) coefficients, None for zeros."""

    logps: Tensor | None
    entropy: Tensor | None
    into: Gradients

    def rows(self, logits: Tensor, chunk: slice) -> RowGradient:
        logps, entropy = (None if c is None else c[chunk] for c in (self.logps, self.entropy))
        out = self.into.rows_of(logits, logits.shape[0])
        assert out is not None
        return RowGradient(logps, entropy, out)


def _pass(call: _Call, op: Operands, hidden: Tensor, targets: Tensor, wanted: Sequence[_Wanted] = ()) -> Tensor:
    """One pass over the chunks. Returns (2, N): log-probabilities and entropies; accumulates what is wanted."""
    stats = op.zeros(2, hidden.shape[0])
    buffer = op.buffer(1)
    for chunk in op.chunks:
        rows = op.cast(hidden[chunk])
        logits = buffer[: rows.shape[0]]
        mm_into(logits, rows, op.weight.t())
        gradients = [w.rows(logits, chunk) for w in wanted]
        call.row_op(logits, op.bias, targets[chunk], stats[:, chunk], gradients, call.settings)
        for w, gradient in zip(wanted, gradients, strict=True):
            w.into.add(gradient.out, rows, chunk)
    return stats


class _FrozenHead(torch.autograd.Function):
    """(log-probabilities, entropies) with gradient to the hidden states, computed in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, call):
        total = hidden.shape[0]
        op = call.operands(weight, bias, total)
        ones = op.zeros(total).fill_(1.0)
        only_hidden = (True, False, False)
        by_logps = Gradients(op, total, only_hidden)
        by_entropy = Gradients(op, total, only_hidden, own_rows=True) if call.entropy_grad else None
        wanted = [] if by_entropy is None else [_Wanted(None, ones, by_entropy)]
        wanted.append(_Wanted(ones, None, by_logps))  # last: its rows may lie in the memory of the logits
        logps, entropies = (row.clone() for row in _pass(call, op, hidden, targets, wanted))
        ctx.save_for_backward(by_logps.hidden, None if by_entropy is None else by_entropy.hidden)
        ctx.dtype = hidden.dtype
        ctx.set_materialize_grads(False)
        if not call.entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *upstream):
        pairs = zip(ctx.saved_tensors, upstream, strict=True)
        # Scaled and added in full precision: a loss scale comes before the cast to fp16.
        terms = [each * scale[:, None] for each, scale in pairs if each is not None and scale is not None]
        return sum(terms[1:], terms[0]).to(ctx.dtype) if terms else None, None, None, None, None


class _TrainableHead(torch.autograd.Function):
    """(log-probabilities, entropies) with gradient to hidden states, head and bias; logits again in the backward."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, call):
        stats = _pass(call, call.operands(weight, bias, hidden.shape[0]), hidden, targets)
        logps, entropies = (row.clone() for row in stats)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.call = call
        ctx.set_materialize_grads(False)
        if not call.entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_logps, by_entropy):
        hidden, weight, bias, targets = ctx.saved_tensors
        if by_logps is None and by_entropy is None:
            return (None,) * 5
        # The caller's gather under ZeRO-3 ended with the forward pass.
        with zero3_gathered(weight, bias), torch.autocast(hidden.device.type, enabled=False):
            op = ctx.call.operands(weight, bias, hidden.shape[0])
            grads = Gradients(op, hidden.shape[0], tuple(ctx.needs_input_grad[:3]))
            by_logps, by_entropy = (None if g is None else g.contiguous() for g in (by_logps, by_entropy))
            _pass(ctx.call, op, hidden, targets, [_Wanted(by_logps, by_entropy, grads)])
            pairs = zip((grads.hidden, grads.weight, grads.bias), (hidden, weight, bias), strict=True)
            return (*(None if grad is None else grad.to(like.dtype) for grad, like in pairs), None, None)


def linear_logps(
    row_ops: RowOps,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    settings: Settings,
    chunk_bytes: int | None,
    entropy_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy, (N,) each."""
    call = _Call(row_ops.logps, settings, operand_dtypes(hidden, weight), chunk_bytes, entropy_grad)
    head_learns = weight.requires_grad or (bias is not None and bias.requires_grad)
    # Operands are cast by hand: autocast would turn the fp32 products below into bf16 ones.
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled() and (head_learns or hidden.requires_grad):
            function = _TrainableHead if head_learns else _FrozenHead
            return function.apply(hidden, weight, bias, targets, call)
        logps, entropies = _pass(call, call.operands(weight, bias, hidden.shape[0]), hidden, targets)
        return logps, entropies
