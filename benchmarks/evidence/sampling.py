"""Samples of a policy, and the entropy of its choices. A loop of its own: `generate` tells no entropies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, samples: int, limit: int, seed: int
) -> tuple[list[list[str]], float]:
    """`samples` completions of each prompt at temperature 1, at most `limit` tokens, and their mean token entropy."""
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    was_training = model.training
    model.eval()
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), logits_to_keep=1, use_cache=True)
    cache, rows = out.past_key_values, len(prompts) * samples
    cache.batch_repeat_interleave(samples)
    mask, logits = mask.repeat_interleave(samples, 0), out.logits[:, -1].repeat_interleave(samples, 0)
    generator = torch.Generator().manual_seed(seed)
    alive, tokens, entropies = torch.ones(rows, dtype=torch.bool), [], []
    for _ in range(limit):
        logps = logits.float().log_softmax(-1)
        entropies.append(-(logps.exp() * logps).sum(-1)[alive])
        token = torch.multinomial(logps.exp(), 1, generator=generator).masked_fill(
            ~alive[:, None], tokenizer.pad_token_id
        )
        tokens.append(token)
        alive = alive & (token[:, 0] != tokenizer.eos_token_id)
        if not alive.any():
            break
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        where = positions(mask)[:, -1:]
        logits = model(input_ids=token, attention_mask=mask, position_ids=where, past_key_values=cache).logits[:, -1]
    model.train(was_training)
    texts = tokenizer.batch_decode(torch.cat(tokens, 1), skip_special_tokens=True)
    return [texts[i : i + samples] for i in range(0, rows, samples)], torch.cat(entropies).mean().item()


def positions(mask: Tensor) -> Tensor:
    """Positions counted from the first token that is no padding."""
    return (mask.cumsum(1) - 1).clamp(min=0)
