"""Text to token ids, piece by piece, and rows of ids to a padded batch."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from trl_selfdistill.context.inputs import check_text

ELLIPSIS = "\n[...]\n"


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a piece of a rendered prompt; chat markers in it are special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def plain_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts around a plain text: before it (a beginning-of-text token) and after it (an end).

    Raises `ValueError` where a text's own ids do not occur in what the tokenizer makes of it.
    """
    whole, inner = tokenizer("a")["input_ids"], encode(tokenizer, "a")
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    raise ValueError(
        f"{type(tokenizer).__name__} encodes a text differently with and without special tokens: {whole} and {inner}. "
        "A context cannot be placed in plain text. Give conversational prompts."
    )


def encode_plain(tokenizer: Any, text: str, literal: dict[str, list[int]]) -> list[int]:
    """Ids of a plain-text prompt, with the given ids in place of each marker, in what the tokenizer puts around it."""
    front, end = plain_frame(tokenizer)
    return [*front, *encode_pieces(tokenizer, text, literal), *end]


def encode_literally(tokenizer: Any, text: Any, *, name: str) -> list[int]:
    """Ids of `text` in which chat markers are nothing but characters.

    Raises `ValueError` for what is not text, naming it, and for a tokenizer that cannot do that.
    """
    check_text(name, text)
    if not text:
        return []
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if (special - {tokenizer.unk_token_id}).intersection(ids):
        raise ValueError(
            f"{type(tokenizer).__name__} turns chat markers inside a context into special tokens, although asked "
            "not to. Use a fast tokenizer (`use_fast=True`)."
        )
    return ids


def encode_pieces(tokenizer: Any, text: str, literal: dict[str, list[int]]) -> list[int]:
    """Ids of a rendered `text`, with the given ids in place of each marker.

    Raises `ValueError` unless each marker stands in the text once.
    """
    pieces = re.split("(" + "|".join(map(re.escape, literal)) + ")", text)
    for marker in literal:
        if pieces.count(marker) != 1:
            raise ValueError(
                f"The chat template wrote the message with the context {pieces.count(marker)} times instead of once: "
                "the context cannot be placed. Use the other context_placement, or a chat template that writes each "
                "message once."
            )
    encoded = [literal[piece] if piece in literal else encode(tokenizer, piece) for piece in pieces]
    return [token for ids in encoded for token in ids]


def render(tokenizer: Any, messages: list[dict[str, Any]], *, tools: list[Any] | None, **kwargs: Any) -> str:
    """A conversation as text. Raises `ValueError` with the roles when the chat template cannot."""
    try:
        # Some templates write tool boilerplate for an empty list.
        return tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, **kwargs)
    except Exception as error:  # jinja raises whatever the template asks for
        roles = [message["role"] for message in messages]
        raise ValueError(
            f"The chat template cannot render a teacher prompt with the roles {roles}: {error}. Change "
            "context_placement, or give a chat template that can."
        ) from error


def render_system_block(render: Callable[[list[dict[str, Any]]], str], block: str, content_blocks: bool) -> str:
    """A system turn alone. Where the chat template wants a user turn, cut from a conversation that has one."""
    content, question = ([{"type": "text", "text": text}] if content_blocks else text for text in (block, "q"))
    system, user = {"role": "system", "content": content}, {"role": "user", "content": question}
    try:
        return render([system])
    except ValueError:
        both, rest = render([system, user]), render([user])
        if not both.endswith(rest):
            raise
        return both.removesuffix(rest)


def cut_middle(tokenizer: Any, ids: list[int], limit: int | None) -> list[int]:
    """At most `limit` ids: both ends of `ids`, with an ellipsis between them where it fits."""
    if limit is None or len(ids) <= limit:
        return ids
    mark = encode(tokenizer, ELLIPSIS)
    mark = mark if len(mark) + 2 <= limit else []
    head = (limit - len(mark) + 1) // 2
    tail = limit - len(mark) - head
    return [*ids[:head], *mark, *ids[len(ids) - tail :]]


def chat_markers(tokenizer: Any, text: str) -> list[str]:
    """The special tokens that `text` itself holds, as text that went through a chat template does."""
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [special[i] for i in ids if i in special]


def prepend(tokenizer: Any, block: list[int], ids: list[int], *, is_plain: bool) -> list[int]:
    """`block` before `ids`; a beginning-of-text token stays first and stands once.

    In plain text that is whatever the tokenizer puts in front. In a conversation, one that comes more than once is no
    such token: ChatML models name their turn marker `bos_token`.
    """
    if is_plain:
        front, _ = plain_frame(tokenizer)
        size = len(front) if ids[: len(front)] == front else 0
        return [*ids[:size], *block, *ids[size:]]
    bos = tokenizer.bos_token_id
    if bos is None or ids[:1] != [bos] or ids.count(bos) > 1:
        return [*block, *ids]
    return [bos, *(block[1:] if block[:1] == [bos] else block), *ids[1:]]


def pad_left(tokenizer: Any, rows: Sequence[list[int]]) -> tuple[Int[Tensor, "B P"], Int[Tensor, "B P"]]:
    """(ids, mask) of rows padded on the left. The mask comes from lengths: a pad id may be part of a prompt."""
    width = max((len(row) for row in rows), default=0)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return ids, mask
