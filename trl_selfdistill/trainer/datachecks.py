"""What can be known of datasets and rewards before training starts."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset, Value

FALLBACK_COLUMN = "solution"


def context_column(names: list[str] | None, column: str) -> str | None:
    """The column that holds the gold solution: `column`, else "solution", else `None`."""
    names = names or []
    return column if column in names else FALLBACK_COLUMN if FALLBACK_COLUMN in names else None


def check_column(dataset: Dataset | IterableDataset, column: str, *, needed_by: str | None) -> str | None:
    """Find the gold column of `dataset` and check that it holds text.

    Args:
        column: the configured name.
        needed_by: the value of `context` that cannot do without it, `None` when it is optional.

    Raises `ValueError` when the column is needed and missing, or is not text.
    """
    names = dataset.column_names or list(first_row(dataset) or {})
    found = context_column(names, column)
    if found is None:
        if needed_by is None:
            return None
        raise ValueError(
            f"context={needed_by!r} needs a dataset column {column!r} (or {FALLBACK_COLUMN!r}) with the gold solution, "
            f"but the dataset has {sorted(names)}. Set privileged_context_column to the right one, use context='peer', "
            "or pass a context_builder."
        )
    kind = (dataset.features or {}).get(found)
    is_text = isinstance(kind, Value) and kind.dtype in ("string", "large_string", "string_view", "null")
    if kind is not None and not is_text:
        if needed_by is None and found != column:
            return None  # a "solution" of another kind belongs to somebody else's reward function
        raise ValueError(
            f"The dataset column {found!r} must hold strings (or None), but its type is {kind}. Convert it to text, or "
            "set privileged_context_column to another column."
        )
    return found


class GoldColumns:
    """Where the gold solution stands. Training and evaluation sets may name its column differently.

    Args:
        column: the configured name.
        needed_by: the value of `context` that cannot do without it, `None` when it is optional.
    """

    def __init__(self, column: str, needed_by: str | None) -> None:
        self._column = column
        self._needed_by = needed_by
        self.names: list[str] = []

    def add(self, dataset: Dataset | IterableDataset) -> dict[str, Any] | None:
        """Check a dataset; its first row. Raises `ValueError` as `check_column` and `of` do."""
        found = check_column(dataset, self._column, needed_by=self._needed_by)
        if found is not None and found not in self.names:
            self.names.append(found)
        row = first_row(dataset)
        if row is not None:
            self.of(row)
        return row

    def of(self, row: Mapping[str, Any]) -> str | None:
        """The gold solution of a row. Raises `ValueError` when it is neither text nor `None`."""
        column = context_column([name for name in row if name in self.names], self._column)
        value = None if column is None else row[column]
        if value is not None and not isinstance(value, str):
            if self._needed_by is None and column != self._column:
                return None  # as in `check_column`, which cannot tell the type of a stream's column
            raise ValueError(
                f"The dataset column {column!r} must hold strings (or None), but a row has a {type(value).__name__}. "
                "Convert it to text, or set privileged_context_column to another column."
            )
        return value if value is None or value.strip() else None  # white space alone is no solution


def first_row(dataset: Dataset | IterableDataset) -> dict[str, Any] | None:
    """The first row, `None` of an empty dataset. A stream is opened anew for it and not consumed."""
    return next(iter(dataset), None)


def datasets_in(*given: Any) -> list[Any]:
    """The datasets among training and evaluation sets, which may be missing, names, or dictionaries of datasets."""
    flat = [part for each in given for part in (each.values() if isinstance(each, dict) else [each])]
    return [part for part in flat if isinstance(part, (Dataset, IterableDataset))]
