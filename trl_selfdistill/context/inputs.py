"""What users give: their functions, batches and messages, checked with words that help. Plain Python."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

from trl_selfdistill.context.rollout import Rollout


def shortened(value: Any, limit: int = 80) -> str:
    """`repr(value)`, at most `limit` characters long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A space and the question "Did you mean 'gold'?" for the nearest of `names`; nothing where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def is_message(value: Any) -> bool:
    """Whether `value` is a chat message: a role, and a content that is text or a list of blocks.

    The content of an assistant may be missing: it may have called a tool instead.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    return isinstance(content, str | list) or (content is None and value["role"] == "assistant")


def takes_one(function: Any, *, field: str, argument: str = "the Rollout") -> Callable[..., Any]:
    """`function` itself. Raises `ValueError` naming the `field` unless it can be called with one `argument`."""
    if not callable(function):
        raise ValueError(f"{field} must be a function of {argument}, not {shortened(function)}.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # functions written in C need not have a signature
        return function
    try:
        signature.bind(None)
    except TypeError as error:
        raise ValueError(
            f"{field} must take one argument, {argument}, but its signature is {signature} ({error}). Give the other "
            "arguments defaults, or bind them with functools.partial."
        ) from error
    return function


def ask(function: Callable[[Rollout], Any], rollout: Rollout, *, field: str) -> Any:
    """`function(rollout)`. Raises `ValueError` naming the `field` and the prompt where the function raises."""
    try:
        return function(rollout)
    except Exception as error:  # a user's function may raise anything
        raise ValueError(
            f"{field} raised {type(error).__name__}: {error}, for the rollout of prompt {shortened(rollout.prompt)}."
        ) from error


def as_weight(value: Any, *, maker: str) -> float:
    """`value` as a float. Raises `ValueError` naming the `maker` unless it is a finite number from 0 on."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, str) or not 0.0 <= number < math.inf:
        raise ValueError(
            f"{maker} must return a finite number, 0 or more, for every rollout, but returned {shortened(value)}."
        )
    return number


def check_batch(prompts: Sequence[Any], **columns: Sequence[Any] | None) -> None:
    """Raise `ValueError` unless `prompts` and each of `columns` that is given are lists with one entry per row."""
    _check_list("prompts", prompts)
    if len(prompts) and isinstance(prompts[0], Mapping):
        raise ValueError("prompts is one conversation, but must be a list of prompts. Write [conversation].")
    for name, values in columns.items():
        if values is None and name != "contexts":
            continue
        _check_list(name, values)
        if len(values or ()) != len(prompts):
            raise ValueError(
                f"{name} must have one entry per prompt: {len(prompts)} prompts, but {len(values or ())} {name}."
            )


def check_text(name: str, text: Any) -> None:
    """Raise `ValueError` unless `text`, which goes to the place `name` of the template, is a string."""
    if not isinstance(text, str):
        raise ValueError(
            f"{name} must be a string or None, got {type(text).__name__}. Convert it in the dataset, or in the "
            "function that makes it."
        )


def _check_list(name: str, values: Any) -> None:
    if isinstance(values, str | Mapping) or not isinstance(values, Sized):
        raise ValueError(
            f"{name} must be a list with one entry per row, not {shortened(values)}. Write [{shortened(values, 30)}]."
        )
