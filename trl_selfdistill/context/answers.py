"""The final answer of a completion, for `context="majority"`. Plain Python."""

import random
import re
from collections import Counter
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def final_answer(text: str) -> str | None:
    r"""The answer that a completion arrives at: the last \boxed{...}, else the last number, else its last line.

    `None` where there is no text at all. Numbers lose their thousands separators.
    """
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    numbers = _NUMBER.findall(text)
    if numbers:
        return numbers[-1].replace(",", "")
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def majority(answers: Sequence[str | None], seed: str) -> str | None:
    """The most frequent answer; among equally frequent ones the seed decides. `None` where there is no answer."""
    counts = Counter(answer for answer in answers if answer)
    if not counts:
        return None
    most = max(counts.values())
    return random.Random(seed).choice(sorted(answer for answer, count in counts.items() if count == most))


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for place in range(begin, len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            if depth == 0:
                return text[begin:place]
            depth -= 1
    return None  # cut off inside the braces
