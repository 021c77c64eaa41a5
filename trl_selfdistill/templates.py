"""The text around a privileged context. Plain Python."""

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
_PLACEHOLDER = re.compile(r"(\{prompt\}|\{context\})")


def default_template(placement: str) -> str:
    """The template of a placement where neither the user nor the algorithm has one."""
    return USER_TEMPLATE if placement == "user" else SYSTEM_TEMPLATE


def check_template(template: str, placement: str) -> None:
    """Raise `ValueError` unless `template` has what `placement` needs."""
    if template.count("{context}") != 1:
        raise ValueError(
            f"teacher_template must contain '{{context}}' exactly once (the privileged text goes there): {template!r}."
        )
    if template.count("{prompt}") > 1:
        raise ValueError(f"teacher_template may contain '{{prompt}}' once at most, got {template!r}.")
    if placement == "system" and "{prompt}" in template:
        raise ValueError(
            "teacher_template contains '{prompt}', but context_placement='system' leaves the prompt as it is and only "
            "puts a block before it. Remove '{prompt}', or use context_placement='user'."
        )


def fill_template(template: str, prompt: str, marker: str) -> str:
    """The template with the prompt's text and a marker for the context. Not `str.format`: texts may hold braces."""
    pieces = _PLACEHOLDER.split(template)
    if "{prompt}" not in pieces and prompt:
        pieces = [prompt, "\n\n", *pieces]
    return "".join({"{prompt}": prompt, "{context}": marker}.get(piece, piece) for piece in pieces)


def unused_marker(text: str) -> str:
    """A word that does not occur in `text`, to find the context's place again after the chat template has run."""
    number = 0
    while (marker := f"privileged-context-{number}-goes-here") in text:
        number += 1
    return marker


def text_of(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    if any(block["type"] != "text" for block in content):
        raise ValueError(
            "context_placement='user' cannot rewrite a user turn that holds images or other media. Use "
            "context_placement='system', which leaves the prompt as it is."
        )
    return "".join(block["text"] for block in content)
