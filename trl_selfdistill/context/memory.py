"""Contexts that remember: what earlier attempts at a task left behind. Plain Python: no torch, no tokenizer.

Agents that try a task again may read what they noted before (EMPO2, https://huggingface.co/papers/2602.23008). Here
the teacher reads it, and the student learns to do without.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_selfdistill.context.inputs import ask, check_text, takes_one
from trl_selfdistill.context.rollout import Context, Rollout

_CUT = "\n[...]\n"


class ContextMemory(ABC):
    """A context builder with a memory. A trainer has it learn from each training batch once its teacher was asked.

    So no rollout sees a lesson of its own batch. Evaluation asks, and does not teach. Every process learns the same:
    the lessons of all of them in global order. All that is remembered has to be in `state_values`. A memory belongs to
    one trainer.
    """

    @abstractmethod
    def __call__(self, rollout: Rollout) -> Context | str | None:
        """What the teacher of `rollout` is shown. Changes nothing: evaluation and other processes ask too."""

    @abstractmethod
    def lesson(self, rollout: Rollout) -> Any:
        """What there is to learn from a rollout, as a JSON value. It is sent to all processes."""

    @abstractmethod
    def learn(self, lessons: Sequence[Any]) -> None:
        """Take in the lessons of one training batch, of all processes, in global order."""

    @abstractmethod
    def state_values(self) -> dict[str, Any]:
        """All that is remembered, as JSON values, for the checkpoint."""

    @abstractmethod
    def load_state_values(self, values: dict[str, Any]) -> None:
        """Take back what `state_values` gave."""


@dataclass(eq=False)
class LessonMemory(ContextMemory):
    """Shows the teacher the best and the latest lessons that earlier batches left of the same task.

    The rollouts of the first batch with a task have no teacher. A lesson that is remembered twice is shown once; the
    best come first, and among equals the newest.

    Args:
        best: lessons with the highest reward to keep of each task. Those without a reward count as the lowest.
        latest: lessons to keep of each task because they are the newest.
        tasks: tasks to keep. The one that was not trained on for longest is forgotten first.
        characters: longest lesson; the middle of a longer one is cut.
        task: dataset column that tells tasks apart. `None`: the prompt does, role by role.
        write: function `Rollout -> str | None` that writes the lesson; `None` and blank text are no lesson. By default,
            the completion (without its thinking part where `context_thinking="remove"`), what was said of it, and its
            reward.

    Raises `ValueError` for limits below 1 (`best` or `latest` may be 0) and for a `write` that takes no rollout.
    """

    best: int = 1
    latest: int = 1
    tasks: int = 4096
    characters: int = 2000
    task: str | None = None
    write: Callable[[Rollout], str | None] | None = None
    _best: dict[str, list[dict[str, Any]]] = field(default_factory=dict, init=False, repr=False)
    _latest: dict[str, list[dict[str, Any]]] = field(default_factory=dict, init=False, repr=False)  # in order of use

    def __post_init__(self) -> None:
        if min(self.best, self.latest) < 0 or self.best + self.latest < 1:
            raise ValueError(f"LessonMemory(best={self.best}, latest={self.latest}) would keep no lesson of a task.")
        if self.tasks < 1:
            raise ValueError(f"LessonMemory(tasks={self.tasks}) must keep at least 1 task.")
        if self.characters < 2 * len(_CUT):
            raise ValueError(f"LessonMemory(characters={self.characters}) must be at least {2 * len(_CUT)}.")
        if self.write is not None:
            takes_one(self.write, field="LessonMemory(write=...)")

    def __call__(self, rollout: Rollout) -> Context | None:
        key = self.key(rollout)
        lessons = [*self._best.get(key, ()), *reversed(self._latest.get(key, ()))]
        texts = list(dict.fromkeys(lesson["text"] for lesson in lessons))
        return Context("\n\n".join(texts), "memory") if texts else None

    def key(self, rollout: Rollout) -> str:
        """The name of a rollout's task, of one length for all. Raises `ValueError` where nothing tells tasks apart."""
        named = prompt_texts(rollout.prompt) if self.task is None else column_value(rollout.row, self.task)
        return hashlib.sha256(json.dumps(named, ensure_ascii=False).encode()).hexdigest()[:32]

    def lesson(self, rollout: Rollout) -> dict[str, Any]:
        text = written(rollout) if self.write is None else ask(self.write, rollout, field="LessonMemory(write=...)")
        if text is not None:
            check_text("What LessonMemory(write=...) returns", text)
        kept = None if text is None or not text.strip() else shorten(text, self.characters)
        reward = None if math.isnan(rollout.reward) else rollout.reward
        return {"task": self.key(rollout), "text": kept, "reward": reward}

    def learn(self, lessons: Sequence[dict[str, Any]]) -> None:
        for lesson in lessons:
            key, new = lesson["task"], {"text": lesson["text"], "reward": lesson["reward"]}
            best, latest = self._best.pop(key, []), self._latest.pop(key, [])
            if new["text"] is not None:
                others = [old for old in best if old["text"] != new["text"]]
                best = sorted([new, *others], key=worth, reverse=True)[: self.best]  # stable: the newest among equals
                latest = [*(old for old in latest if old["text"] != new["text"]), new][-self.latest :]
            self._best[key], self._latest[key] = best, latest if self.latest else []
        for key in list(self._best)[: -self.tasks]:
            del self._best[key], self._latest[key]

    def state_values(self) -> dict[str, Any]:
        return {"lessons": [[key, best, self._latest[key]] for key, best in self._best.items()]}

    def load_state_values(self, values: dict[str, Any]) -> None:
        self._best = {key: best for key, best, _ in values["lessons"]}
        self._latest = {key: latest for key, _, latest in values["lessons"]}


def written(rollout: Rollout) -> str:
    """The lesson of a rollout where no function writes it: what was done, what was said of it, what it was worth."""
    parts = [rollout.completion if rollout.shown is None else rollout.shown]
    if rollout.feedback is not None:
        check_text("feedback", rollout.feedback)
        parts.append(f"Feedback: {rollout.feedback}")
    if not math.isnan(rollout.reward):
        parts.append(f"Reward: {rollout.reward:g}")
    return "\n".join(parts)


def worth(lesson: Mapping[str, Any]) -> float:
    return -math.inf if lesson["reward"] is None else lesson["reward"]


def shorten(text: str, limit: int) -> str:
    """`text` without its middle where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    front = (limit - len(_CUT)) // 2
    return text[:front] + _CUT + text[len(text) - (limit - len(_CUT) - front) :]


def prompt_texts(prompt: str | list[dict[str, Any]]) -> Any:
    """What a prompt says, as JSON. Raises `ValueError` for one with images, which text does not tell apart."""
    if isinstance(prompt, str):
        return prompt
    texts = []
    for message in prompt:
        content = message.get("content") or ""
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if any(block.get("type") != "text" for block in blocks):
            raise ValueError(
                "a LessonMemory tells tasks apart by the text of their prompts, but a prompt holds images. Name a "
                "dataset column that tells them apart: LessonMemory(task='id')."
            )
        texts.append([message["role"], "".join(block["text"] for block in blocks)])
    return texts


def column_value(row: Mapping[str, Any], column: str) -> str:
    """The value of a row's `column` as text. Raises `ValueError` where there is none."""
    if row.get(column) is None:
        raise ValueError(
            f"LessonMemory(task={column!r}): a row has no such column, or None in it. It has {sorted(row)}. "
            "With remove_unused_columns=True columns like this one are dropped: set it to False."
        )
    return str(row[column])
