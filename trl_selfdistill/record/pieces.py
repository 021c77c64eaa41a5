"""Tokens as pieces of the text that they make together."""

from collections.abc import Callable, Sequence
from typing import Any

LONGEST = 4
"""Tokens that a character may take, at most: bytes of UTF-8."""


class Pieces:
    """Cuts the text of a completion into one piece per token. The pieces, put together, are the decoded completion.

    A token of a byte-level vocabulary may hold a part of a character. Then its piece is empty, and the token that
    completes the character has it. Special tokens keep their names.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}

    def of(self, ids: Sequence[int]) -> list[str]:
        """The pieces of `ids`, one for each."""
        text = self._decode(ids)
        alone = [self._decode_alone(i) for i in ids]
        return alone if "".join(alone) == text else cut(text, ids, self._decode)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _decode_alone(self, token: int) -> str:
        if token not in self._alone:
            self._alone[token] = self._decode([token])
        return self._alone[token]


def cut(text: str, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """`text`, which is `decode(ids)`, cut into pieces.

    A token is decoded behind its neighbours, since some decoders drop a space that comes first. What it adds is its
    piece where the text goes on like that. Where it does not, as with half of a character, it waits for the tokens that
    follow. The last token has what is left.
    """
    pieces, at, before, first = [], 0, 0, 0  # ids[before:first] are the neighbours, ids[first:] have no piece yet
    for end in range(1, len(ids) + 1):
        added = decode(ids[before:end])[len(decode(ids[before:first])) :]
        if end - first > LONGEST:  # no character is that long: bytes that are none confuse the neighbours
            added = decode(ids[:end])[at:]
        if text.startswith(added, at):
            at, before, first = at + len(added), first, end
            pieces.append(added)
        else:
            pieces.append("")
    if pieces:
        pieces[-1] += text[at:]
    return pieces


def starts(pieces: Sequence[str]) -> list[int]:
    """Where each piece begins in their text, in characters."""
    found, at = [], 0
    for piece in pieces:
        found.append(at)
        at += len(piece)
    return found
