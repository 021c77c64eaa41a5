"""The text around a privileged context. Plain Python."""

import difflib
import re
from typing import Any

Prompt = str | list[dict[str, Any]]

USER_TEMPLATE = (
    "Here is a correct solution of the problem below, from another attempt:\n\n{context}\n\n"
    "With this in mind, solve the problem from the beginning, in your own words.\n\n{prompt}"
)
SYSTEM_TEMPLATE = (
    "Here is a correct solution of the problem that follows, from another attempt:\n\n{context}\n\n"
    "With this in mind, solve the problem from the beginning, in your own words."
)
_PLACEHOLDER = re.compile(r"(\{prompt\}|\{context\}|\{feedback\})")
_WORD = re.compile(r"\{([A-Za-z_]\w*)\}")
_LATEX = re.compile(r"(?:\\[A-Za-z]+\[[^\[\]]*\]|[\w^])(?:\{[^{}]*\})+")  # \sqrt[3]{x}, \frac{a}{b}, x^{n}
_OTHER_NAMES = {
    "answer": "context",
    "solution": "context",
    "hint": "context",
    "question": "prompt",
    "problem": "prompt",
}


def default_template(placement: str) -> str:
    """The template of a placement where neither the user nor the algorithm has one."""
    return USER_TEMPLATE if placement == "user" else SYSTEM_TEMPLATE


_TASK = {"user": "the task below", "system": "the task that follows"}
_INTRODUCTIONS = {
    "feedback": "This is what was said of your attempt at {task}:",
    "memory": "This is what earlier attempts at {task} left behind, and not all of them were right:",
}
"""For contexts that are no solution, by name."""


def templates_of(context: str, algorithm: dict[str, str]) -> dict[str, str]:
    """The templates by placement for a context called `context`, given those of the `algorithm`, which may have none.

    What is no solution is not called one. Where the algorithm shows its verdict of the rollout, that stays.
    """
    if context not in _INTRODUCTIONS:
        return algorithm
    told = "How your answer was assessed: {feedback}\n\n" if "{feedback}" in algorithm.get("system", "") else ""
    blocks = {
        placement: f"{_INTRODUCTIONS[context].replace('{task}', task)}\n\n{{context}}\n\n{told}"
        "With this in mind, solve the task from the beginning, in your own words."
        for placement, task in _TASK.items()
    }
    return {**blocks, "user": f"{blocks['user']}\n\n{{prompt}}"}


def check_template(template: str, placement: str) -> None:
    """Raise `ValueError` unless `template` has what `placement` needs, and no placeholder that nobody fills."""
    check_placeholders(template)
    if template.count("{context}") != 1:
        raise ValueError(
            f"teacher_template must contain '{{context}}' exactly once (the privileged text goes there): {template!r}."
        )
    for name in ("{prompt}", "{feedback}"):
        if template.count(name) > 1:
            raise ValueError(f"teacher_template may contain {name!r} once at most, got {template!r}.")
    if placement == "system" and "{prompt}" in template:
        raise ValueError(
            "teacher_template contains '{prompt}', but context_placement='system' leaves the prompt as it is and only "
            "puts a block before it. Remove '{prompt}', or use context_placement='user'."
        )


def check_placeholders(template: str) -> None:
    r"""Raise `ValueError` for a `{word}` that is no placeholder, with the nearest one that is.

    Braces right after a letter, a digit, `_` or `^` belong to LaTeX, as in `\boxed{answer}`.
    """
    rest, before = _PLACEHOLDER.sub(" ", template), None
    while rest != before:  # inner braces first
        rest, before = _LATEX.sub("x", rest), rest
    for word in _WORD.findall(rest):
        near = difflib.get_close_matches(word.lower(), ["prompt", "context", "feedback"], n=1)
        right = near[0] if near else _OTHER_NAMES.get(word.lower())
        hint = f" Did you mean '{{{right}}}'?" if right else ""
        raise ValueError(
            f"teacher_template contains '{{{word}}}', which nothing fills.{hint} The placeholders are '{{context}}' "
            "(the privileged text), '{prompt}' and '{feedback}'. Braces that are meant as text need a space inside: "
            f"'{{ {word} }}'."
        )


def fill_template(template: str, prompt: str, markers: dict[str, str]) -> str:
    """The template with the prompt's text, and with markers for the texts that are encoded apart from the rest.

    Not `str.format`: the texts may hold braces.
    """
    pieces = _PLACEHOLDER.split(template)
    if "{prompt}" not in pieces and prompt:
        pieces = [prompt, "\n\n", *pieces]
    values = {"{prompt}": prompt, **markers}
    return "".join(values.get(piece, piece) for piece in pieces)


def unused_markers(template: str, text: str) -> dict[str, str]:
    """For `{context}` and `{feedback}`, where the template has them, a word that does not occur in `text`.

    It finds the place again after the chat template has run.
    """
    number = 0
    while f"privileged-text-{number}-" in text:
        number += 1
    names = [name for name in ("context", "feedback") if f"{{{name}}}" in template]
    return {f"{{{name}}}": f"privileged-text-{number}-{name}" for name in names}


def text_of(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    if any(block["type"] != "text" for block in content):
        raise ValueError(
            "context_placement='user' cannot rewrite a user turn that holds images or other media. Use "
            "context_placement='system', which leaves the prompt as it is."
        )
    return "".join(block["text"] for block in content)
