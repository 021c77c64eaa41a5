"""Hidden states of completions, with each distinct prompt encoded once.

The rollouts of a group have one student prompt and often one teacher prompt. The plain way encodes it once per rollout.
Here it goes through the model once, and the completions continue from its keys and values, with the same result.
Without gradients: the keys and values are part of no graph.

    plan = make_plan(prompt_ids, prompt_mask, completion_ids, completion_mask, batch_size=8)
    for rows, hidden in run(plan, forward):
        ...  # hidden: (b, t, H), predicts the first t completion tokens of those rows

Shapes: B rows, P prompt tokens (padded on the left), T completion tokens (padded on the right), H hidden size. A mask
is not zero at real tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from trl_selfdistill.scoring.prefix_cache import PromptCache


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together, their prompts' places in the block, and the longest row's tokens."""

    rows: list[int]
    prompts: list[int]
    width: int

    @property
    def forwards(self) -> int:
        return int(self.width > 1)  # the first token is predicted by the prompt's end


@dataclass(frozen=True)
class Block:
    """Distinct prompts whose keys and values are held at the same time (a row number for each), and their rows."""

    prompts: list[int]
    batches: list[MicroBatch]

    @property
    def forwards(self) -> int:
        return 1 + sum(batch.forwards for batch in self.batches)


class Texts(NamedTuple):
    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Shaped[Tensor, "B P"]
    completion_ids: Int[Tensor, "B T"]
    completion_mask: Shaped[Tensor, "B T"]


@dataclass(frozen=True)
class Plan:
    """What one process runs, in order. `forwards` is the number of forwards that it takes."""

    texts: Texts
    blocks: list[Block]

    @property
    def forwards(self) -> int:
        return sum(block.forwards for block in self.blocks)


def make_plan(
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Shaped[Tensor, "B P"],
    completion_ids: Int[Tensor, "B T"],
    completion_mask: Shaped[Tensor, "B T"],
    *,
    batch_size: int,
) -> Plan:
    """Which rows share a prompt, and how they are cut into forwards of at most `batch_size` prompts or rows.

    Prompts are the same when their real tokens are. A block has up to `batch_size` distinct prompts of similar length,
    encoded in one forward; the keys and values of no others are held. Its rows follow from long to short, so that few
    are padded. Raises `ValueError` for a `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 row per forward, got {batch_size}.")
    texts = Texts(prompt_ids, prompt_mask, completion_ids, completion_mask)
    if not len(prompt_ids):
        return Plan(texts, [])
    # -1 sorts before every token, so the distinct prompts come from short to long.
    marked = prompt_ids.masked_fill(~prompt_mask.bool(), -1).cpu()
    distinct, prompt_of = marked.unique(dim=0, return_inverse=True)
    followers: list[list[int]] = [[] for _ in distinct]
    for row, prompt in enumerate(prompt_of.tolist()):
        followers[prompt].append(row)
    lengths = _lengths(completion_mask)
    blocks = [_block(part, lengths, batch_size) for part in _cut(followers, batch_size)]
    return Plan(texts, blocks)


def _block(followers: list[list[int]], lengths: list[int], batch_size: int) -> Block:
    """The block of some prompts, given the rows of each."""
    pairs = [(row, place) for place, rows in enumerate(followers) for row in rows]
    pairs.sort(key=lambda pair: -lengths[pair[0]])
    batches = [
        MicroBatch([row for row, _ in part], [place for _, place in part], width=lengths[part[0][0]])
        for part in _cut(pairs, batch_size)
    ]
    return Block([rows[0] for rows in followers], batches)


def _cut(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _lengths(mask: Tensor) -> list[int]:
    """Tokens of each row up to its last real one, and 1 for a row without any."""
    counted = torch.arange(1, mask.size(1) + 1, device=mask.device) * mask.bool()
    return counted.amax(dim=1).clamp(min=1).tolist()


def run(
    plan: Plan, forward: Callable[..., Any], *, forwards: int | None = None
) -> Iterator[tuple[list[int], Float[Tensor, "b t H"]]]:
    """Row numbers and hidden states of one micro-batch after the other: (b, t, H) predicts its first t tokens.

    Each row comes once; what stands behind its own last token means nothing. Call it in evaluation mode and under
    `no_grad`, and exhaust it: other processes wait for its last forward.

    Args:
        plan: of `make_plan`.
        forward: runs the model's backbone. Gets `input_ids` (b, t), `attention_mask` (b, cached + t), `past_key_values`
            and `use_cache`; gives tokens their positions among the mask's real tokens (`positions` in `scoring`);
            returns `last_hidden_state` (b, t, H) and `past_key_values`.
        forwards: how many forwards to run, at least `plan.forwards`. FSDP and ZeRO-3 need the same number on all
            processes, so pass the largest. Those left over are dummies of one token.

    Raises `ValueError` where `forwards` is too small, or the model keeps no keys and values.
    """
    dummies = 0 if forwards is None else forwards - plan.forwards
    if dummies < 0:
        raise ValueError(f"forwards must be at least the plan's {plan.forwards}, got {forwards}.")
    for block in plan.blocks:
        yield from _run_block(block, plan.texts, forward)
    one = plan.texts.prompt_ids.new_ones(1, 1)
    for _ in range(dummies):
        forward(input_ids=one, attention_mask=one, past_key_values=None, use_cache=False)


def _run_block(
    block: Block, texts: Texts, forward: Callable[..., Any]
) -> Iterator[tuple[list[int], Float[Tensor, "b t H"]]]:
    mask = texts.prompt_mask[block.prompts]
    width = max(_lengths(mask.flip(1)))
    ids, mask = texts.prompt_ids[block.prompts, -width:], mask[:, -width:].long()
    out = forward(input_ids=ids, attention_mask=mask, past_key_values=None, use_cache=True)
    cache, ends = out.past_key_values, out.last_hidden_state[:, -1:].clone()  # not a view of all hidden states
    del out
    for batch in block.batches:
        hidden = ends[batch.prompts]
        if batch.forwards:
            own = (batch.rows, slice(batch.width - 1))  # what the last token predicts is not asked
            seen = torch.cat([mask[batch.prompts], texts.completion_mask[own].long()], dim=1)
            past, ids = PromptCache(cache, batch.prompts), texts.completion_ids[own]
            out = forward(input_ids=ids, attention_mask=seen, past_key_values=past, use_cache=True)
            hidden = torch.cat([hidden, out.last_hidden_state], dim=1)
            del out
        yield batch.rows, hidden


def shared_hidden_states(
    plan: Plan, forward: Callable[..., Any], *, forwards: int | None = None
) -> Float[Tensor, "B T H"]:
    """What `run` gives, as one tensor in the order of the rows. Zeros or anything outside the completion mask.

    For few rows: of all B it holds T x H numbers at once, which `run` does not.
    """
    result: Tensor | None = None
    for rows, hidden in run(plan, forward, forwards=forwards):
        if result is None:
            result = hidden.new_zeros(*plan.texts.completion_ids.shape, hidden.size(-1))
        result[rows, : hidden.size(1)] = hidden
    if result is None:
        raise ValueError("A plan without rows has no hidden states. Plan for at least one row.")
    return result
