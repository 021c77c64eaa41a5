"""Counts on completion texts: deliberation, and leakage of the solution."""

import re
from collections.abc import Iterable

EPISTEMIC_WORDS = (
    "wait",
    "hmm",
    "perhaps",
    "maybe",
    "actually",
    "alternatively",
    "seems",
    "might",
    "likely",
    "check",
)
"""The ten deliberation words of https://huggingface.co/papers/2603.24472."""

_EPISTEMIC = re.compile(rf"\b(?:{'|'.join(EPISTEMIC_WORDS)})\b")
_LEAK = re.compile(
    r"\b(?:reference|provided|given|correct) (?:solution|answer|rollout|attempt)\b"
    r"|\bprevious (?:attempt|assessment)\b|\bbased on the (?:text|solution)\b|\bas (?:shown|given) in the solution\b"
)


def epistemic_substrings(text: str) -> int:
    """Occurrences of the ten words as substrings ("checking" counts), the way the paper's numbers were made."""
    lowered = text.lower()
    return sum(lowered.count(word) for word in EPISTEMIC_WORDS)


def epistemic_words(text: str) -> int:
    """Occurrences of the ten words as whole words."""
    return len(_EPISTEMIC.findall(text.lower()))


def mentions_solution(text: str) -> bool:
    """Whether a completion talks about a solution it was never shown: the sign that privileged context leaks."""
    return bool(_LEAK.search(text.lower()))


def epistemic_token_ids(pairs: Iterable[tuple[str, list[int]]]) -> list[int]:
    """The ids that stand for a whole epistemic word, from (text, ids) pairs of `epistemic_spellings`."""
    return sorted({ids[0] for _, ids in pairs if len(ids) == 1})


def epistemic_spellings() -> list[str]:
    """The words as they begin a token in running text: with and without a leading space, lower case and capitalised."""
    return [space + form for word in EPISTEMIC_WORDS for form in (word, word.capitalize()) for space in ("", " ")]
