"""Prompts and privileged contexts in, teacher prompts as token ids out. Needs a tokenizer, no model.

Only the prompt is built here. The teacher scores the very completion ids that the student sampled: they are appended to
these prompts later and are never decoded and encoded again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from transformers import BatchEncoding

from trl_selfdistill.context.builders import as_context
from trl_selfdistill.context.encoding import (
    cut_middle,
    encode,
    encode_literally,
    encode_pieces,
    encode_plain,
    pad_left,
    prepend,
    render,
    render_system_block,
)
from trl_selfdistill.context.inputs import check_batch
from trl_selfdistill.context.rollout import Context
from trl_selfdistill.context.templates import (
    Prompt,
    check_template,
    default_template,
    fill_template,
    text_of,
    unused_markers,
)
from trl_selfdistill.context.window import Window


@dataclass(frozen=True, slots=True)
class PrivilegedContextCollator:
    """Builds the prompts of the teacher, who sees what the student does not.

    `context_placement="user"` writes `teacher_template` into the last user turn (or, for plain text, around the
    prompt); system messages, earlier turns and tool schemas stay. `"system"` puts a block before the prompt's own
    tokens, which stay untouched: for multi-turn prompts, tools, images, and prompts that do not end with a user turn.

    A context is always encoded as plain text: chat markers in it never become special tokens, and braces mean nothing.
    `max_context_tokens` cuts its middle, never the question, the instruction around it or the generation header.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the policy.
        teacher_template: text with one `{context}`, at most one `{prompt}` (placement "user" only; without it the
            template follows the prompt) and at most one `{feedback}`. `None` takes the default of the placement.
        context_placement: "user" or "system".
        max_context_tokens: longest context in tokens, `None` for no limit.
        teacher_chat_template_kwargs: keyword arguments for the chat template, such as `{"enable_thinking": True}`.
        chat_template: a chat template in place of the tokenizer's.
        content_blocks: whether that template takes lists of content blocks only, as those of vision-language models do.
        window: tokens that prompt and completion may have together, `None` for no limit. The context is cut for it.

    Raises `ValueError` for a bad template, placement or limit.
    """

    tokenizer: Any
    teacher_template: str | None = None
    context_placement: Literal["user", "system"] = "user"
    max_context_tokens: int | None = None
    teacher_chat_template_kwargs: dict[str, Any] | None = None
    chat_template: str | None = None
    content_blocks: bool = False
    window: int | None = None
    _window: Window = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.context_placement not in ("user", "system"):
            raise ValueError(f"context_placement={self.context_placement!r} must be 'user' or 'system'.")
        if self.max_context_tokens is not None and self.max_context_tokens < 1:
            raise ValueError(f"max_context_tokens={self.max_context_tokens} must be at least 1, or None for no limit.")
        check_template(self.template, self.context_placement)
        object.__setattr__(self, "_window", Window(self.window))

    @property
    def template(self) -> str:
        """The template in use: `teacher_template`, or the default of the placement."""
        own = self.teacher_template
        return default_template(self.context_placement) if own is None else own

    def __call__(
        self,
        prompts: Sequence[Prompt],
        contexts: Sequence[Context | str | list[dict[str, Any]] | None],
        *,
        feedback: Sequence[str | None] | None = None,
        prompt_ids: Sequence[list[int]] | None = None,
        tools: Sequence[list[Any] | None] | None = None,
        completion_tokens: Sequence[int] | None = None,
    ) -> BatchEncoding:
        """Teacher prompts for a batch of B rows, P tokens wide.

        Args:
            prompts: plain texts or conversations, as the student got them.
            contexts: privileged text of each row; blank or `None` for a row without a teacher. A `Context` whose text
                is `None` makes a teacher without privileged text, with its own chat-template arguments.
            feedback: how each rollout fared, for templates with `{feedback}`; encoded literally, never cut.
            prompt_ids: the student's prompt tokens, unpadded; encoded from `prompts` when not given.
            tools: the tool schemas of each row.
            completion_tokens: lengths of the completions, which share the window with the prompts.

        Returns a `BatchEncoding` (a dict that also has attributes and `.to(device)`) of
            teacher_prompt_ids: (B, P) int, padded on the left. Without a teacher, the student's own prompt.
            teacher_prompt_mask: (B, P) int, from lengths, never from the pad id.
            has_context: (B,) bool, False for a row without a teacher.
            context_tokens: (B,) int, the context's length before truncation.
            context_truncated: (B,) bool.

        Raises `ValueError` when a context is not text or cannot be placed, and when the lists differ in length.
        """
        optional = {
            "feedback": feedback,
            "prompt_ids": prompt_ids,
            "tools": tools,
            "completion_tokens": completion_tokens,
        }
        check_batch(prompts, contexts=contexts, **optional)
        given = [as_context(context, maker="{context}") for context in contexts]
        columns = [[None] * len(prompts) if column is None else column for column in optional.values()]
        rows = [self._row(*row) for row in zip(prompts, given, *columns, strict=True)]
        padded, mask = pad_left(self.tokenizer, [ids for ids, _, _ in rows])
        return BatchEncoding(
            {
                "teacher_prompt_ids": padded,
                "teacher_prompt_mask": mask,
                "has_context": torch.tensor([context is not None for context in given], dtype=torch.bool),
                "context_tokens": torch.tensor([length for _, length, _ in rows], dtype=torch.long),
                "context_truncated": torch.tensor([cut for _, _, cut in rows], dtype=torch.bool),
            }
        )

    def _row(
        self,
        prompt: Prompt,
        given: Context | None,
        feedback: str | None,
        own_ids: list[int] | None,
        tools: list[Any] | None,
        completion_tokens: int | None,
    ) -> tuple[list[int], int, bool]:
        if given is None or given.text is None:
            keeps_ids = given is None or self.context_placement == "system" or isinstance(prompt, str)
            return (own_ids if own_ids and keeps_ids else self._student_ids(prompt, tools)), 0, False
        texts = {"{context}": given.text, "{feedback}": feedback}
        markers = unused_markers(self.template, self.template + str(prompt))
        literal = {markers[name]: encode_literally(self.tokenizer, texts[name], name=name) for name in markers}
        context = literal[markers["{context}"]]

        def build(shown: list[int]) -> list[int]:
            pieces = {**literal, markers["{context}"]: shown}
            if self.context_placement == "user":
                return self._user_prompt(prompt, tools, markers, pieces)
            block = self._system_block(prompt, markers, pieces)
            own = own_ids or self._student_ids(prompt, tools)
            return prepend(self.tokenizer, block, own, is_plain=isinstance(prompt, str))

        shown = cut_middle(self.tokenizer, context, self.max_context_tokens)
        ids, shown = self._window.fit(self.tokenizer, shown, build, completion_tokens or 0)
        return ids, len(context), len(shown) < len(context)

    def _student_ids(self, prompt: Prompt, tools: list[Any] | None) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        return encode(self.tokenizer, self._render(prompt, tools, add_generation_prompt=True))

    def _user_prompt(
        self, prompt: Prompt, tools: list[Any] | None, markers: dict[str, str], literal: dict[str, list[int]]
    ) -> list[int]:
        """The prompt with the template in its last user turn."""
        if isinstance(prompt, str):
            return encode_plain(self.tokenizer, fill_template(self.template, prompt, markers), literal)
        if not prompt or prompt[-1]["role"] != "user":
            last = prompt[-1]["role"] if prompt else "nothing"
            raise ValueError(
                f"context_placement='user' needs prompts that end with a user turn, but one ends with {last!r}. "
                "Use context_placement='system', which leaves the prompt as it is."
            )
        turn = fill_template(self.template, text_of(prompt[-1]["content"]), markers)
        messages = [*prompt[:-1], {**prompt[-1], "content": turn}]
        return encode_pieces(self.tokenizer, self._render(messages, tools, add_generation_prompt=True), literal)

    def _system_block(self, prompt: Prompt, markers: dict[str, str], literal: dict[str, list[int]]) -> list[int]:
        """The block that stands before the prompt."""
        block = fill_template(self.template, "", markers)
        if isinstance(prompt, str):
            return encode_pieces(self.tokenizer, block + "\n\n", literal)
        alone = partial(self._render, tools=None, add_generation_prompt=False)
        return encode_pieces(self.tokenizer, render_system_block(alone, block, self.content_blocks), literal)

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, add_generation_prompt: bool) -> str:
        kwargs = {**(self.teacher_chat_template_kwargs or {}), "chat_template": self.chat_template}
        return render(self.tokenizer, messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs)
