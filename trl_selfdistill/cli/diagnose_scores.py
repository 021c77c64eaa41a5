"""What teacher and student say of the student's own tokens: u, entropies and divergences, in float32."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trl_selfdistill.context.encoding import pad_left
from trl_selfdistill.maths import log_ratio
from trl_selfdistill.ops import linear_divergence, output_head
from trl_selfdistill.record.wording import EPISTEMIC_WORDS
from trl_selfdistill.scoring.forward import causal_lm, inside_forward
from trl_selfdistill.scoring.tokens import TokenScorer, positions
from trl_selfdistill.teachers.base import scoring_mode

EPISTEMIC = re.compile(rf"\b(?:{'|'.join(EPISTEMIC_WORDS)})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TokenTable:
    """N tokens of the rollouts that have the context, one number for each."""

    row: Tensor
    """(N,) int, the rollout."""
    student_logps: Float[Tensor, " N"]
    teacher_logps: Float[Tensor, " N"]
    student_entropy: Float[Tensor, " N"]
    teacher_entropy: Float[Tensor, " N"]
    divergence: Float[Tensor, " N"]
    """KL(teacher || student) over the whole vocabulary, nats, not clipped."""
    epistemic: Bool[Tensor, " N"]

    @property
    def log_ratio(self) -> Float[Tensor, " N"]:
        """u_t = t_t - s_t."""
        return log_ratio(self.student_logps[None], self.teacher_logps[None])[0]


def epistemic_mask(pieces: Sequence[str]) -> list[bool]:
    """For each token's text whether it is part of one of the ten epistemic words, as a whole word.

    A word may be spread over several tokens: all of them count. The space before it does not begin one.
    """
    text, ends = "", []
    for piece in pieces:
        text += piece
        ends.append(len(text))
    spans = [match.span() for match in EPISTEMIC.finditer(text)]
    starts = [0, *ends][: len(ends)]
    return [any(start < b and a < end for a, b in spans) for start, end in zip(starts, ends, strict=True)]


def padded_prompts(tokenizer: Any, device: torch.device, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts, (b, P) each, padded on the left."""
    ids, mask = pad_left(tokenizer, prompts)
    return ids.to(device), mask.to(device)


def hidden_of(model: nn.Module, prompts: tuple[Tensor, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """(b, T, H) hidden states from which the completions `ids` are predicted after `prompts` (ids and mask)."""
    inner = causal_lm(model)

    def run(**inputs: Any) -> Any:
        width = inputs["input_ids"].size(1)
        out = inner.base_model(**inputs, **positions(inner, inputs["attention_mask"], width=width), use_cache=False)
        return out.last_hidden_state[:, -ids.size(1) - 1 : -1]

    whole = {"input_ids": torch.cat([prompts[0], ids], 1), "attention_mask": torch.cat([prompts[1], mask], 1)}
    return inside_forward(model, inner, run, **whole)


@torch.no_grad()
def score(
    model: Any,
    tokenizer: Any,
    student: Sequence[list[int]],
    teachers: Mapping[str, Sequence[list[int] | None]],
    completions: Sequence[list[int]],
    *,
    temperature: float,
    batch_size: int,
) -> dict[str, TokenTable]:
    """The token table of each context.

    Args:
        model: the policy; it is its own teacher.
        tokenizer: its tokenizer.
        student: the student's prompt of each rollout.
        teachers: by context the teacher's prompt of each rollout, `None` where there is no context.
        completions: the sampled tokens of each rollout.
        temperature: that of the sampling: logits are divided by it, on both sides.
        batch_size: rollouts a forward.
    """
    parts: dict[str, list[TokenTable]] = {name: [] for name in teachers}
    written = [row for row, ids in enumerate(completions) if ids]
    with scoring_mode(model):
        for start in range(0, len(written), batch_size):
            rows = written[start : start + batch_size]
            for name, table in score_batch(model, tokenizer, student, teachers, completions, rows, temperature):
                parts[name].append(table)
    return {name: joined(tables) for name, tables in parts.items() if tables}


def score_batch(
    model: Any,
    tokenizer: Any,
    student: Sequence[list[int]],
    teachers: Mapping[str, Sequence[list[int] | None]],
    completions: Sequence[list[int]],
    rows: list[int],
    temperature: float,
) -> list[tuple[str, TokenTable]]:
    """The tables of the rollouts `rows`. The student's hidden states are made once for all contexts."""
    device, inner = model.device, causal_lm(model)
    scorer = TokenScorer(model, inner, temperature)
    ids, mask = pad_right([completions[row] for row in rows], device)
    prompts_of = partial(padded_prompts, tokenizer, device)
    own = hidden_of(model, prompts_of([student[row] for row in rows]), ids, mask)
    words = torch.zeros_like(mask, dtype=torch.bool)
    for place, row in enumerate(rows):
        flags = epistemic_mask([tokenizer.decode([token]) for token in completions[row]])
        words[place, : len(flags)] = torch.tensor(flags, device=device)
    found = []
    for name, prompts in teachers.items():
        keep = [place for place, row in enumerate(rows) if prompts[row] is not None]
        if not keep:
            continue
        shown = [prompts[rows[place]] or [] for place in keep]
        chosen, valid = ids[keep], mask[keep].bool()
        other = hidden_of(model, prompts_of(shown), chosen, mask[keep])
        targets, row_ids = chosen[valid], torch.tensor(rows, device=device)[keep][:, None].expand_as(chosen)[valid]
        with output_head(inner) as head:
            s, student_entropy = scorer.score_hidden(own[keep][valid], targets, head)
            t, teacher_entropy = scorer.score_hidden(other[valid], targets, head)
            sides = (own[keep][valid], other[valid], head.weight)
            settings = {"bias": head.bias, "logit_scale": head.logit_scale, "softcap": head.softcap}
            kl = linear_divergence(*sides, temperature=temperature, **settings).divergence
        values = (row_ids, s, t, student_entropy, teacher_entropy, kl, words[keep][valid])
        found.append((name, TokenTable(*(value.cpu() for value in values))))
    return found


def pad_right(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), both (b, T)."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def joined(tables: Sequence[TokenTable]) -> TokenTable:
    names = TokenTable.__slots__
    return TokenTable(*(torch.cat([getattr(table, name) for table in tables]) for name in names))
