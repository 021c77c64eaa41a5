"""One row of a preview: what is printed of both sides, and what is checked."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from trl_selfdistill.cli import preview_checks as checks
from trl_selfdistill.cli.preview_text import marked, print_sides, spans, visible
from trl_selfdistill.context.encoding import render
from trl_selfdistill.trainer.prompts_only import Sides, own_prompt

PLACE = "a-place-that-no-text-has"


@dataclass(frozen=True)
class Look:
    """What the tokenizer knows: which ids are chat markers, which are added tokens, and how ids are written."""

    tokenizer: Any

    @property
    def special(self) -> set[int]:
        ids = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return ids | set(self.tokenizer.all_special_ids)

    @property
    def added(self) -> set[int]:
        return {*self.tokenizer.added_tokens_decoder, *self.special}

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def show(trainer: Any, look: Look, sides: Sides) -> None:
    """Print both sides, with lengths, the cut and where the completion starts."""
    print(f"context: {told_context(sides)}")
    print(f"completion: {len(sides.completion)} tokens; {sides.stand_in} stands in for what the policy would write")
    flags = flags_of(trainer)
    print(f"chat template arguments: student {flags[0]}, teacher {flags[1]}{unknown_flags(trainer, flags)}")
    titles, columns = [], []
    for name, prompt in (("student", sides.student), ("teacher", sides.teacher)):
        titles.append(f"{name}: {len(prompt)} tokens of prompt")
        start = (f"\n── the completion starts here, at token {len(prompt)} ──\n", False)
        parts = [spans(ids, look.added, look.text) for ids in (prompt, sides.completion)]
        columns.append([*parts[0], start, *parts[1]])
    print_sides((titles[0], titles[1]), (columns[0], columns[1]))


def show_alone(look: Look, prompt: list[int]) -> None:
    """Print the policy's prompt, which is all there is without a teacher."""
    print(f"student: {len(prompt)} tokens of prompt\n{marked(spans(prompt, look.added, look.text))}")


def assertions_alone(trainer: Any, look: Look, row: Any) -> list[checks.Check]:
    """What must hold of a row without a teacher."""
    if isinstance(row["prompt"], str):
        return []
    start = header(trainer, row["prompt"], dict(trainer.chat_template_kwargs))
    return [checks.ends_with_header("student", look.text(own_prompt(trainer, row)), start)]


def told_context(sides: Sides) -> str:
    """Where the context came from, how long it is, and what was cut."""
    if sides.context is None:
        return "none: this row has no teacher (the algorithm, or the data, has nothing to show it)"
    if sides.context.text is None:
        return "none was asked for: the teacher sees the prompt with its own chat-template arguments"
    cut = f", cut to {len(sides.shown)}" if len(sides.shown) < sides.context_tokens else ", nothing cut"
    rollout = sides.context.source not in ("gold", "other_gold")
    stands = f"; {sides.stand_in} stands in for another rollout" if rollout else ""
    return f"{visible(sides.context.source)}, {sides.context_tokens} tokens{cut}{stands}"


def flags_of(trainer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chat-template arguments of student and teacher."""
    return dict(trainer.chat_template_kwargs), dict(trainer.collator.teacher_chat_template_kwargs or {})


def unknown_flags(trainer: Any, flags: tuple[dict[str, Any], dict[str, Any]]) -> str:
    """A remark on arguments that the chat template never names."""
    template = str(trainer.chat_template or trainer.processing_class.chat_template)
    unknown = sorted(name for name in {**flags[0], **flags[1]} if name not in template)
    return f" (the chat template knows no {', '.join(unknown)})" if unknown else ""


def assertions(trainer: Any, look: Look, row: Any, sides: Sides) -> list[checks.Check]:
    """Everything that must hold of a row."""
    prompt, special = row["prompt"], look.special
    in_front = trainer.args.context_placement == "system"
    whole = (sides.student + sides.completion, sides.teacher + sides.completion)
    starts = (len(sides.student), len(sides.teacher))
    talks = not isinstance(prompt, str)
    found = [
        checks.same_completion(*whole, starts),
        checks.same_markers(sides.student, sides.teacher, special, in_front=in_front, has_header=talks),
    ]
    texts = look.text(sides.student), look.text(sides.teacher)
    if talks:
        headers = tuple(header(trainer, prompt, flags) for flags in flags_of(trainer))
        own = (headers[0], headers[0] if in_front or sides.context is None else headers[1])
        found += [checks.ends_with_header(*each) for each in zip(("student", "teacher"), texts, own, strict=True)]
        found.append(checks.thinking(own, flags_of(trainer), texts[1]))
    if sides.context is None or not isinstance(sides.context.text, str):
        return found
    return [*found, *of_context(trainer, look, prompt, sides), checks.not_for_the_student(sides.context.text, texts[0])]


def of_context(trainer: Any, look: Look, prompt: Any, sides: Sides) -> list[checks.Check]:
    """That the context came through as text, at its place."""
    places, size = checks.places(sides.shown, sides.teacher), len(sides.shown)
    found = [checks.context_is_there(places), checks.context_is_text(sides.shown, look.special)]
    if not places:
        return found
    if trainer.args.context_placement == "system":
        return [*found, checks.context_in_front(places[0], size, sides.teacher, sides.student)]
    if isinstance(prompt, str):
        return found
    around = frame(trainer, prompt)
    # Of several places, as those of a context of one letter, the first in the turn.
    first = bisect_left(places, True, key=lambda i: look.text(sides.teacher[:i]).startswith(around.before))
    place = places[min(first, len(places) - 1)]
    before, after = look.text(sides.teacher[:place]), look.text(sides.teacher[place + size :])
    return [*found, checks.context_in_turn(before, after, around)]


def rendered(trainer: Any, messages: list[dict[str, Any]], flags: dict[str, Any], *, header: bool) -> str:
    about = {"chat_template": trainer.chat_template, "add_generation_prompt": header}
    return render(trainer.processing_class, messages, tools=trainer.tools, **about, **flags)


def header(trainer: Any, prompt: list[dict[str, Any]], flags: dict[str, Any]) -> str:
    """What the chat template writes where the answer begins."""
    whole, start = (rendered(trainer, prompt, flags, header=wanted) for wanted in (True, False))
    return whole.removeprefix(start) if whole.startswith(start) else ""


def frame(trainer: Any, prompt: list[dict[str, Any]]) -> checks.Frame:
    """What stands around the content of the last turn, with the teacher's arguments."""
    messages = [*prompt[:-1], {**prompt[-1], "content": PLACE}]
    before, _, after = rendered(trainer, messages, flags_of(trainer)[1], header=True).partition(PLACE)
    return checks.Frame(before, after)
