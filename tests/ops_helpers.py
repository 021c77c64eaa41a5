"""Shared by the tests of `trl_selfdistill.ops`: seeded problems, the float64 truth and the naive op."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trl_selfdistill.ops import DivergenceOutput, linear_divergence
from trl_selfdistill.ops.reference import divergence_entries
from trl_selfdistill.ops.types import token_scale

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The liger back end needs a GPU or Triton's interpreter, which `test_ops_triton.py` starts in a process of its own.
IMPLS = ["torch", "liger"] if INTERPRETED or torch.cuda.is_available() else ["torch"]
GRADIENTS = ("student", "weight", "bias")


def device_of(impl: str) -> str:
    return "cuda" if impl == "liger" and not INTERPRETED else "cpu"


@dataclass(frozen=True)
class Problem:
    student: Tensor
    teacher: Tensor
    weight: Tensor
    bias: Any  # Tensor or None
    token_weights: Tensor
    targets: Tensor

    def to(self, *args) -> "Problem":
        tensors = {k: v.to(*args) for k, v in vars(self).items() if v is not None and k != "targets"}
        return replace(self, **tensors, targets=self.targets.to(tensors["weight"].device))


def problem(
    n: int, width: int, vocab: int, *, bias=False, gap=0.3, logit_std=4.0, dtype=torch.float64, seed=0
) -> Problem:
    """Teacher = student + noise of size `gap`; values are rounded to `dtype` once: every precision sees the same."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    student = draw(n, width)
    weight = draw(vocab, width) * (logit_std / width**0.5)
    return Problem(
        student=student,
        teacher=student + gap * draw(n, width),
        weight=weight,
        bias=draw(vocab) if bias else None,
        token_weights=torch.rand(n, generator=g, dtype=torch.float64),
        targets=torch.randint(vocab, (n,), generator=g),
    ).to(dtype)


@dataclass
class Result:
    """Output of one call and the gradients of `loss` in float64 on the CPU, None where none was asked for."""

    output: DivergenceOutput
    gradients: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        every = {**vars(self.output), **{f"d_{k}": v for k, v in self.gradients.items()}}
        return {k: v.detach().double().cpu() for k, v in every.items() if v is not None}


def solve(p: Problem, *, trainable=GRADIENTS, op=linear_divergence, **settings) -> Result:
    leaves = {
        k: None if v is None else v.detach().clone().requires_grad_(k in trainable)
        for k, v in {"student": p.student, "weight": p.weight, "bias": p.bias}.items()
    }
    output = op(
        leaves["student"],
        p.teacher,
        leaves["weight"],
        bias=leaves["bias"],
        token_weights=p.token_weights,
        targets=p.targets,
        **settings,
    )
    output.loss.backward()
    return Result(output, {k: None if v is None else v.grad for k, v in leaves.items()})


def truth(p: Problem, **settings) -> Result:
    return solve(p.to("cpu", torch.float64), impl="reference", **settings)


def naive_divergence(
    student, teacher, weight, *, bias, token_weights, targets, beta, entry_clip, token_clip, softcap, temperature
) -> DivergenceOutput:
    """What a trainer does without the op: logits in the dtype of the model, then fp32 mathematics over all of them."""

    def log_probs(hidden: Tensor, head: Tensor, shift: Tensor | None) -> Tensor:
        logits = F.linear(hidden, head, shift)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)

    ls = log_probs(student, weight, bias)
    lt = log_probs(teacher, weight, bias).detach()
    entries = divergence_entries(ls, lt, beta)
    kept = entries if entry_clip is None else entries.clamp(max=entry_clip)
    divergence = kept.sum(-1)
    pick = targets[:, None]
    return DivergenceOutput(
        loss=(token_scale(token_weights, divergence.detach(), token_clip) * divergence).sum(),
        divergence=divergence.detach(),
        student_entropy=-(ls.exp() * ls).sum(-1).detach(),
        teacher_entropy=-(lt.exp() * lt).sum(-1),
        clipped_fraction=((entries > kept) * lt.exp()).sum(-1).detach(),
        student_logps=ls.gather(1, pick)[:, 0].detach(),
        teacher_logps=lt.gather(1, pick)[:, 0],
    )


class CountProducts(TorchDispatchMode):
    """Counts matrix products while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))
