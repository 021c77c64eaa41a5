"""What must hold of a row's two prompts, as pure functions of token ids and texts. No tokenizer, no model."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

TELLING = 24
"""Characters of a context from which its occurrence in a prompt can be no chance: a gold answer of "7" is in "5+7="."""


@dataclass(frozen=True)
class Check:
    """One assertion. `remedy` is what to do where it fails; a check that could not be made has `ok=None`."""

    what: str
    ok: bool | None
    remedy: str = ""


@dataclass(frozen=True)
class Frame:
    """The text that a chat template puts before and after the last turn's content."""

    before: str
    after: str


def places(part: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Where `part` begins in `whole`: a short one may stand in several places. None where `part` is empty."""
    size, part = len(part), list(part)
    return [
        i for i in range(len(whole) - size + 1) if size and whole[i] == part[0] and list(whole[i : i + size]) == part
    ]


def same_completion(student: Sequence[int], teacher: Sequence[int], starts: tuple[int, int]) -> Check:
    """Both sides' whole sequences have the same ids from where their completions start."""
    ok = list(student[starts[0] :]) == list(teacher[starts[1] :]) and starts[0] < len(student)
    return Check(
        "the same completion ids follow both prompts",
        ok,
        "The completion must be appended as ids, never encoded again.",
    )


def same_markers(
    student: Sequence[int], teacher: Sequence[int], special: Set[int], *, in_front: bool, has_header: bool
) -> Check:
    """The teacher's special tokens are the student's; with `in_front` (a block before the prompt) they end with them.

    `has_header=True` wants at least one: a conversation without any has not been through a chat template.
    """
    own, theirs = ([token for token in ids if token in special] for ids in (student, teacher))
    ok = (theirs[len(theirs) - len(own) :] if in_front else theirs) == own and (bool(own) or not has_header)
    remedy = (
        "The chat template writes other turns for the teacher: set context_placement='system', or give the tokenizer a "
        "chat template that knows the roles of these prompts."
        if own
        else "The prompts have no special token: the chat template does not mark turns, or the tokenizer does not know "
        "its marks as special tokens."
    )
    return Check("chat markers stand where they belong", ok, remedy)


def ends_with_header(side: str, text: str, header: str) -> Check:
    """A prompt ends where the answer begins. `header` is what the chat template writes there; blank for plain text."""
    remedy = f"The {side}'s prompt does not end with {header!r}: give a chat template that heeds add_generation_prompt."
    return Check(f"the {side}'s prompt ends where the answer begins", text.endswith(header), remedy)


def thinking(headers: tuple[str, str], flags: tuple[dict, dict], teacher: str) -> Check:
    """Both prompts end alike where both sides have the same chat-template arguments (`flags`).

    Where those differ it is meant, as in OPSD, and told. `headers` are what the template writes for each side.
    """
    if flags[0] != flags[1] and headers[0] != headers[1]:
        told = f"student {flags[0]}, teacher {flags[1]}: {headers[0]!r} against {headers[1]!r}"
        return Check(f"thinking flags differ ({told}): u of the first tokens measures this, too", None)
    remedy = "The chat template begins the answer in another way for the teacher: set context_placement='system'."
    return Check("both prompts end alike, thinking flags included", teacher.endswith(headers[0]), remedy)


def context_in_turn(before: str, after: str, frame: Frame) -> Check:
    """The context stands inside the turn. `before` and `after` are the teacher's prompt around the context."""
    ok = before.startswith(frame.before) and after.endswith(frame.after)
    remedy = (
        "The chat template moves the last user turn: set context_placement='system', which leaves the prompt as it is."
    )
    return Check("the context stands inside the right turn", ok, remedy)


def context_in_front(place: int, size: int, teacher: Sequence[int], student: Sequence[int]) -> Check:
    """The context stands before the student's own prompt, which follows unchanged but for a beginning-of-text token."""
    own = len(student) - 1
    ok = place + size <= len(teacher) - own and list(teacher[len(teacher) - own :]) == list(student[1:])
    remedy = "The block changes the prompt's own tokens: use context_placement='user', or another chat template."
    return Check("the context stands before the prompt, whose tokens are unchanged", ok, remedy)


def context_is_there(found: Sequence[int]) -> Check:
    """`found` are the places of the context's ids in the teacher's prompt."""
    remedy = "The context did not come through as it is: use a fast tokenizer, or another context_placement."
    return Check("the context came through token by token", bool(found), remedy)


def context_is_text(shown: Sequence[int], special: Set[int]) -> Check:
    remedy = "Chat markers in a context became special tokens: use a fast tokenizer (use_fast=True)."
    return Check("nothing in the context is a special token", special.isdisjoint(shown), remedy)


def not_for_the_student(context: str, prompt: str) -> Check:
    """The student's prompt does not hold the context. Of one that is short nobody can tell."""
    what = "the context is nowhere on the student's side"
    text = " ".join(context.split())
    if len(text) < TELLING:
        return Check(f"{what} (not checked: {len(text)} characters may stand there by chance)", None)
    remedy = "The data set's prompt holds the solution: take it out, with --prompt_column or a row_function."
    return Check(what, text not in " ".join(prompt.split()), remedy)
