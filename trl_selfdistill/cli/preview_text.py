"""Token ids as text for a terminal: special tokens marked, and nothing in it obeyed."""

import shutil
import unicodedata
from collections.abc import Callable, Sequence, Set
from itertools import groupby

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

OPEN, CLOSE = "⟦", "⟧"
WIDE = 100
"""Columns of a terminal from which both sides stand side by side."""
_REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}


def visible(text: str) -> str:
    """`text` without what a terminal would obey: control characters as their pictures, marks of direction by number."""
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    code = ord(character)
    if character == "\n" or (unicodedata.category(character) not in ("Cc", "Cs") and code not in _REORDERING):
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"


def spans(ids: Sequence[int], added: Set[int], decode: Callable[[list[int]], str]) -> list[tuple[str, bool]]:
    """(text, whether it is an added token) of `ids`. Each added token, such as a chat marker, is a span of its own."""
    found = []
    for is_added, run in groupby(ids, lambda token: token in added):
        tokens = list(run)
        found += [(decode([token]), True) for token in tokens] if is_added else [(decode(tokens), False)]
    return [(visible(text), is_added) for text, is_added in found]


def marked(parts: Sequence[tuple[str, bool]]) -> str:
    """Spans as plain text, added tokens between brackets."""
    return "".join(f"{OPEN}{text}{CLOSE}" if is_added else text for text, is_added in parts)


def print_sides(titles: tuple[str, str], sides: tuple[list, list], width: int | None = None) -> None:
    """Two lists of spans side by side where the terminal is wide enough, else one after the other."""
    width = shutil.get_terminal_size().columns if width is None else width
    if width < WIDE:
        for title, parts in zip(titles, sides, strict=True):
            print(f"--- {title}\n{marked(parts)}")
        return

    # `Text` is never read as markup.
    cells = [Text.assemble(*((marked([part]), "reverse" if part[1] else "") for part in parts)) for parts in sides]
    table = Table(*(Column(Text(title), ratio=1) for title in titles), expand=True)
    table.add_row(*cells)
    Console(width=width, highlight=False, emoji=False, markup=False).print(table)
