"""The measured figures of the documentation are those of the raw numbers that are committed."""

import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import marks
import pages


def test_the_pages_say_what_the_raw_numbers_say():
    pages.main(["--check"])


def test_another_figure_is_found(monkeypatch):
    made = {page: {mark: f"{text} " for mark, text in texts.items()} for page, texts in pages.blocks().items()}
    monkeypatch.setattr(pages, "blocks", lambda: made)
    with pytest.raises(SystemExit, match=r"Run benchmarks/pages\.py"):
        pages.main(["--check"])


def test_a_mark_without_figures_is_an_error():
    with pytest.raises(ValueError, match="the numbers make"):
        marks.filled("<!-- one -->\n<!-- /one -->\n", {"two": "2"})
