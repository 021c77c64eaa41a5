"""What one row of a dataset must hold: its prompt, and its gold solution."""

from collections.abc import Mapping
from typing import Any

from trl_selfdistill.context.inputs import did_you_mean, is_message, shortened
from trl_selfdistill.context.rollout import conversation_text

DEFAULT_COLUMN = "privileged_context"
FALLBACK_COLUMN = "solution"


def context_column(names: list[str], column: str) -> str | None:
    """The column that holds the gold solution: `column`, `None` where it is missing.

    "solution" takes the place of the default name alone: a name that the user chose is meant.
    """
    if column in names:
        return column
    return FALLBACK_COLUMN if column == DEFAULT_COLUMN and FALLBACK_COLUMN in names else None


def check_prompt(prompt: Any, *, placement: str | None, where: str) -> None:
    """Raise `ValueError` naming the place `where`, unless `prompt` is text or a conversation that fits `placement`.

    `placement` is `None` where no context is placed.
    """
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(
            f"{where}: the prompt is {shortened(prompt)}, but it must be a string or a list of messages with at least "
            "one. Remove such rows with dataset.filter, or repair them."
        )
    for message in prompt:
        if not is_message(message):
            raise ValueError(
                f"{where}: a message of the prompt is {shortened(message)}, but it must have a role and a content, "
                "such as {'role': 'user', 'content': '1+1='}. Repair the row, or remove it with dataset.filter."
            )
    if placement == "user" and prompt[-1]["role"] != "user":
        raise ValueError(
            f"{where}: context_placement='user' needs prompts that end with a user turn, but this one ends with "
            f"{prompt[-1]['role']!r}: {shortened(prompt[-1]['content'])}. Use context_placement='system', which leaves "
            "the prompt as it is."
        )


class GoldColumns:
    """Where the gold solution stands. Training and evaluation sets may name its column differently.

    Args:
        column: the configured name.
        needed_by: the value of `context` that cannot do without it, `None` when it is optional.
    """

    def __init__(self, column: str, needed_by: str | None) -> None:
        self._column = column
        self.needed_by = needed_by
        self.names: list[str] = []

    def add(self, dataset: str, names: list[str], *, training: bool) -> str | None:
        """The gold column among the columns `names` of the set called `dataset`.

        Raises `ValueError` where a needed column is missing, and where one that the user named is not in the training
        set: the setting would do nothing.
        """
        column = context_column(names, self._column)
        if column is not None:
            self.names += [column] if column not in self.names else []
            return column
        chosen = self._column != DEFAULT_COLUMN
        other = "" if chosen else f" (or {FALLBACK_COLUMN!r})"
        if self.needed_by is not None:
            raise ValueError(
                f"context={self.needed_by!r} needs a dataset column {self._column!r}{other} with the gold solution, "
                f"but {dataset} has {sorted(names)}.{did_you_mean(self._column, names)} Set privileged_context_column "
                "to the right one, use context='peer', or pass a context_builder."
            )
        if chosen and training:
            raise ValueError(
                f"privileged_context_column={self._column!r} is no column of {dataset}, which has {sorted(names)}."
                f"{did_you_mean(self._column, names)} Set it to the right one, or leave it out."
            )
        return None

    def of(self, row: Mapping[str, Any], *, where: str = "a row") -> str | None:
        """The gold solution of a row as text, `None` where it is blank; chat messages are written out as text.

        Raises `ValueError` naming the place `where` when it is nothing of the kind.
        """
        column = context_column([name for name in row if name in self.names], self._column)
        value = None if column is None else row[column]
        if isinstance(value, list) and all(map(is_message, value)):
            value = conversation_text(value) if value else None
        if value is not None and not isinstance(value, str):
            if self.needed_by is None and column != self._column:
                return None  # a "solution" of another kind belongs to somebody else's reward function
            raise ValueError(
                f"{where}: the column {column!r} must hold strings (or None, or chat messages), but it holds "
                f"{shortened(value)} ({type(value).__name__}). Convert it to text, or set privileged_context_column to "
                "another column."
            )
        return value if value is None or value.strip() else None  # white space alone is no solution
