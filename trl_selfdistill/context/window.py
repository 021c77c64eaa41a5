"""A teacher prompt that is too long for the model: the middle of its context goes, and nothing else."""

import warnings
from collections.abc import Callable
from typing import Any

from trl_selfdistill.context.encoding import cut_middle


class Window:
    """The tokens that a model takes. Says so once when a context has to be cut for it."""

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._warned = False

    def fit(
        self, tokenizer: Any, context: list[int], build: Callable[[list[int]], list[int]], completion_tokens: int
    ) -> tuple[list[int], list[int]]:
        """(prompt, context) where prompt and completion fit, with as much of the context as there is room for.

        One token of the context always stays: a prompt that is too long without it is so for the student, too.

        Args:
            tokenizer: writes the ellipsis where the context is cut.
            context: ids of the context.
            build: the whole prompt with a context in it. Everything else has a fixed length.
            completion_tokens: length of the completion that will follow.
        """
        ids = build(context)
        excess = 0 if self._tokens is None else len(ids) + completion_tokens - self._tokens
        if excess <= 0 or len(context) <= 1:
            return ids, context
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"A teacher prompt of {len(ids)} tokens and a completion of {completion_tokens} are more than the "
                f"model's window of {self._tokens} (max_position_embeddings): the context of {len(context)} tokens is "
                f"cut by {excess}, and longer ones after it. self_distill/context_truncated counts them. Set "
                "max_context_tokens, or lower max_completion_length.",
                stacklevel=2,
            )
        kept = cut_middle(tokenizer, context, max(1, len(context) - excess))
        return build(kept), kept
