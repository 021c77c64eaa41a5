"""The variants that `linear_divergence.py` compares: (problem, beta) -> mean divergence (logits for `gemm`)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trl_selfdistill.ops import linear_divergence


@dataclass(frozen=True)
class Problem:
    student: Tensor
    teacher: Tensor
    weight: Tensor
    targets: Tensor

    @staticmethod
    def draw(n: int, width: int, vocab: int, gap: float, dtype: torch.dtype, device: str, frozen: bool) -> "Problem":
        g = torch.Generator(device).manual_seed(0)
        new = {"generator": g, "device": device}
        student = torch.randn(n, width, **new)
        teacher = (student + gap * torch.randn(n, width, **new)).to(dtype)
        weight = torch.randn(vocab, width, **new).mul_(4.0 / width**0.5).to(dtype)  # logits of standard deviation 4
        return Problem(
            student.to(dtype).requires_grad_(),
            teacher,
            weight.requires_grad_(not frozen),
            torch.randint(vocab, (n,), **new),
        )


def ours(p: Problem, beta: float) -> Tensor:
    scale = p.student.new_full(p.targets.shape, 1 / len(p.targets), dtype=torch.float32)
    return linear_divergence(p.student, p.teacher, p.weight, beta=beta, token_weights=scale, targets=p.targets).loss


def naive(p: Problem, beta: float) -> Tensor:
    student = F.linear(p.student, p.weight).float().log_softmax(-1)
    with torch.no_grad():
        teacher = F.linear(p.teacher, p.weight).float().log_softmax(-1)
        for log_probs in (student, teacher):
            log_probs.gather(1, p.targets[:, None])
            torch.linalg.vecdot(log_probs.exp(), log_probs)
    if beta == 0.0:
        return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1).mean()
    if beta == 1.0:
        return F.kl_div(teacher, student, log_target=True, reduction="none").sum(-1).mean()
    mixture = torch.logaddexp(student + torch.tensor(1 - beta).log(), teacher + torch.tensor(beta).log())
    to_mixture = [F.kl_div(mixture, x, log_target=True, reduction="none").sum(-1) for x in (teacher, student)]
    return (beta * to_mixture[0] + (1 - beta) * to_mixture[1]).mean()


def trl(p: Problem, beta: float) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    divergence, _ = ChunkedDivergenceFunction.apply(p.student, p.weight, None, p.teacher, p.weight, None, beta)
    with torch.no_grad():
        for hidden in (p.student, p.teacher):
            ChunkedLogProbFunction.apply(hidden, p.weight, None, p.targets, 1.0, 32768, None, 1.0, ("entropy",))
    return divergence.mean()


def liger(p: Problem, beta: float, compiled: bool = False) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=compiled)
    return loss(p.student, p.weight, p.teacher, p.weight, p.targets)


def liger_compiled(p: Problem, beta: float) -> Tensor:
    return liger(p, beta, compiled=True)


def gemm(p: Problem, beta: float) -> Tensor:
    """The bare products, a ceiling: the logits of both streams, and the way back from the student's."""
    with torch.no_grad():
        F.linear(p.teacher, p.weight)
    return F.linear(p.student, p.weight)


VARIANTS: dict[str, Callable[[Problem, float], Tensor]] = {
    f.__name__: f for f in (ours, gemm, naive, trl, liger, liger_compiled)
}
