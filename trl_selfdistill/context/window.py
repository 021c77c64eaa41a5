"""A teacher prompt that is too long for the model: the middle of its context goes, and nothing else."""

import warnings
from collections.abc import Callable
from typing import Any

from trl_selfdistill.context.encoding import cut_middle


class Window:
    """The longest teacher prompt, in tokens. Says so once when a context has to be cut for it."""

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._warned = False

    def fit(
        self, tokenizer: Any, context: list[int], build: Callable[[list[int]], list[int]]
    ) -> tuple[list[int], list[int]]:
        """(prompt, context) where `build(context)` fits, with as much of the context as there is room for.

        Args:
            tokenizer: writes the ellipsis where the context is cut.
            context: ids of the context.
            build: the whole prompt with a context in it. Everything else has a fixed length.

        Raises `ValueError` when not even one token of the context fits.
        """
        ids = build(context)
        excess = 0 if self._tokens is None else len(ids) - self._tokens
        if excess <= 0:
            return ids, context
        if excess >= len(context):
            raise ValueError(
                f"A teacher prompt has {len(ids) - len(context)} tokens without its context, and there is room for "
                f"{self._tokens}: the model's window (max_position_embeddings) less max_completion_length. Lower "
                "max_completion_length, take shorter prompts, or a model with a larger window."
            )
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"A teacher prompt of {len(ids)} tokens is longer than the {self._tokens} that the model's window "
                f"(max_position_embeddings) leaves beside max_completion_length: its context of {len(context)} tokens "
                f"is cut by {excess}, and longer ones after it. self_distill/context_truncated counts them. Set "
                "max_context_tokens, or lower max_completion_length.",
                stacklevel=2,
            )
        kept = cut_middle(tokenizer, context, len(context) - excess)
        return build(kept), kept
