"""The measured figures of the documentation, from the raw numbers in `benchmarks/results`.

    python benchmarks/pages.py          # writes them into the pages
    python benchmarks/pages.py --check  # an error where a page says something else

docs/evidence.md has a script of its own, `evidence.tables`.
"""

import argparse
import sys
from pathlib import Path

import cpu_tables
import tiny_tables
from marks import filled

ROOT = Path(__file__).parents[1]


def blocks() -> dict[str, dict[str, str]]:
    """Page -> mark -> what stands there."""
    made: dict[str, dict[str, str]] = {}
    for tables in (cpu_tables, tiny_tables):
        for page, texts in tables.blocks().items():
            made.setdefault(page, {}).update(texts)
    return made


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(given).check
    made = blocks()
    pages = {page: (ROOT / page).read_text() for page in made}
    new = {page: filled(text, made[page]) for page, text in pages.items()}
    other = [page for page, text in pages.items() if new[page] != text]
    if check and other:
        sys.exit(f"{', '.join(other)}: not what benchmarks/results says. Run benchmarks/pages.py.")
    for page in other:
        (ROOT / page).write_text(new[page])


if __name__ == "__main__":
    main()
