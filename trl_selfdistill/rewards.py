"""Reward functions beside TRL's: name them by their dotted path, `trl_selfdistill.rewards.last_number_reward`."""

import logging
from typing import Any

from trl_selfdistill.context.rollout import completion_text

try:
    from math_verify import ExprExtractionConfig, parse, verify
except ImportError as error:
    raise ImportError(
        "trl_selfdistill.rewards needs math-verify: pip install math-verify, or this package's extra [math]."
    ) from error

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of every call without a timeout


def last_number_reward(completions: list[Any], solution: list[str], **kwargs: Any) -> list[float]:
    """1.0 where the last number of the completion is the solution, else 0.0.

    For models that never write `\\boxed{}`: TRL's `accuracy_reward`, which wants LaTeX, would give them 0 throughout.

    Args:
        completions: texts, or conversations.
        solution: the column with the answers.
    """
    texts = [completion_text(completion, tool_results=False) for completion in completions]
    return [float(is_right(text, answer)) for text, answer in zip(texts, solution, strict=True)]


def is_right(text: str, answer: str) -> bool:
    """Whether the last number in `text` is `answer`. No timeouts: they need signals, which only a main thread has."""
    numbers: Any = {"extraction_config": [ExprExtractionConfig()], "parsing_timeout": None}
    return bool(verify(parse(answer, **numbers), parse(text, **numbers), timeout_seconds=None))
