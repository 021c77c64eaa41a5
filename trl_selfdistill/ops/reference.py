"""The definition of both ops in plain torch: full logits, full autograd. The oracle of the tests, never fast."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .projection import operand_dtypes
from .types import LOGIT_FLOOR, Settings, token_scale


def head_log_probs(
    hidden: Float[Tensor, "N H"], weight: Float[Tensor, "V H"], bias: Float[Tensor, " V"] | None, settings: Settings
) -> Float[Tensor, "N V"]:
    """log softmax(softcap * tanh((h W^T + b) * logit_scale / softcap) / temperature), in fp32 (fp64 if given fp64)."""
    rounded, _ = operand_dtypes(hidden, weight)
    full = torch.promote_types(rounded, torch.float32)
    hidden, weight = hidden.to(rounded).to(full), weight.to(rounded).to(full)
    with torch.autocast(hidden.device.type, enabled=False):  # it would round the logits
        logits = F.linear(hidden, weight, None if bias is None else bias.to(rounded).to(full))
    logits = logits.clamp(min=LOGIT_FLOOR) * settings.logit_scale
    if settings.softcap is not None:
        logits = settings.softcap * torch.tanh(logits / settings.softcap)
    return torch.log_softmax(logits / settings.temperature, dim=-1)


def divergence_entries(
    student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], beta: float
) -> Float[Tensor, "N V"]:
    """Per-entry terms of the divergence between two log-probability rows (OPSD, https://arxiv.org/abs/2601.18734).

    beta = 0: p_t (log p_t - log p_s); beta = 1: p_s (log p_s - log p_t); between: the generalised Jensen-Shannon
    divergence with m = (1 - beta) p_s + beta p_t, beta p_t log(p_t / m) + (1 - beta) p_s log(p_s / m).
    """
    if beta == 0.0:
        return teacher.exp() * (teacher - student)
    if beta == 1.0:
        return student.exp() * (student - teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * teacher.exp() * (teacher - mixture) + (1.0 - beta) * student.exp() * (student - mixture)


def entropy(log_probs: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    return -(log_probs.exp() * log_probs).sum(-1)


def pick(log_probs: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    return log_probs.gather(-1, targets[:, None]).squeeze(-1)


def linear_divergence(
    student_hidden: Float[Tensor, "N H"],
    teacher_hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    teacher_head: tuple[Tensor, Tensor | None] | None,
    token_weights: Float[Tensor, " N"],
    targets: Int[Tensor, " N"] | None,
    settings: Settings,
    chunk_bytes: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "6 N"]]:
    """(loss, statistics in the order of `types`). No chunks: `chunk_bytes` has no effect."""
    student = head_log_probs(student_hidden, weight, bias, settings)
    with torch.no_grad():
        if teacher_head is not None:
            weight, extra = teacher_head
            bias = bias if bias is None or extra is None else bias + extra
        teacher = head_log_probs(teacher_hidden, weight, bias, settings)
    entries = divergence_entries(student, teacher, settings.beta)
    clip = math.inf if settings.entry_clip is None else settings.entry_clip
    divergence = entries.clamp(max=clip).sum(-1)
    loss = (token_scale(token_weights, divergence.detach(), settings.token_clip) * divergence).sum()
    with torch.no_grad():
        clipped = ((entries > clip) * teacher.exp()).sum(-1)
        logps = [clipped * 0, clipped * 0] if targets is None else [pick(student, targets), pick(teacher, targets)]
        return loss, torch.stack([divergence, entropy(student), entropy(teacher), clipped, *logps]).detach()


def linear_logps(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    settings: Settings,
    chunk_bytes: int | None = None,
    entropy_grad: bool = True,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each target and entropy. No chunks: `chunk_bytes` has no effect."""
    log_probs = head_log_probs(hidden, weight, bias, settings)
    return pick(log_probs, targets), entropy(log_probs if entropy_grad else log_probs.detach())
