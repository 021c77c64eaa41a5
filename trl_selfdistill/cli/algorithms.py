"""`trl-selfdistill algorithms`: every algorithm in one table, made from its class."""

import argparse
import re
from dataclasses import fields
from typing import Any

import trl_selfdistill
from trl_selfdistill.cli.commands import ALGORITHMS, SUMMARIES
from trl_selfdistill.context.builders import NEEDS_GOLD, NEEDS_GROUP
from trl_selfdistill.settings import default_of
from trl_selfdistill.trainer import TokenSignalTrainer
from trl_selfdistill.trainer.definition import paper_of

COLUMNS = ("trainer", "what it does", "kind", "views", "teacher", "context", "needs", "paper", "differs from the paper")
_DIFFERS = re.compile(r"^\s*Differs: (.*?)(?:\n\s*\n|\Z)", re.M | re.S)


def main(argv: list[str]) -> int:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(prog="trl-selfdistill algorithms", description=__doc__)
    parser.add_argument("--pages", default="", help="where the pages of the documentation are, such as docs/")
    print(table(parser.parse_args(argv).pages))
    return 0


def table(pages: str = "") -> str:
    """The table of all exported algorithms, in Markdown. Links go to the folder `pages`."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(row(command, pages) for command in sorted(ALGORITHMS))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(command: str, pages: str = "") -> tuple[str, ...]:
    """What `COLUMNS` say of the algorithm of a command."""
    trainer: Any = getattr(trl_selfdistill, ALGORITHMS[command])
    defaults = {f.name: default_of(f) for f in fields(trainer.config_class)}
    context = defaults["context"]
    paper = paper_of(trainer)["id"]
    return (
        f"[`{trainer.__name__}`]({pages}{command}.md)",
        SUMMARIES[command],
        "token signal" if issubclass(trainer, TokenSignalTrainer) else "divergence",
        views_of(trainer.views),
        f'`"{defaults["teacher_model_kind"]}"`' if trainer.views else "none",
        f'`"{context}"`' if trainer.views else "none",
        ", ".join(needs(trainer, context)) or "nothing",
        f"[{paper}](https://huggingface.co/papers/{paper})",
        differs(trainer),
    )


def views_of(views: tuple[str, ...]) -> str:
    """The names of the views, numbered ones in short: `wrong_1` to `wrong_4`."""
    numbered = [view for view in views if view[-1].isdigit()]
    names = [f"`{view}`" for view in views if view not in numbered]
    return ", ".join([*names, *([f"`{numbered[0]}` to `{numbered[-1]}`"] if numbered else [])]) or "none"


def needs(trainer: Any, context: str) -> list[str]:
    """What the algorithm asks for with its default settings: a gold solution, a reward, a group of rollouts."""
    has_stand_in = trainer.rewards_for(None, trainer.config_class(use_cpu=True)) is not None
    found = {
        "gold": context in NEEDS_GOLD,
        "reward": not has_stand_in,
        "group": context in NEEDS_GROUP or "peer" in context,
    }
    return [name for name, needed in found.items() if needed]


def differs(trainer: Any) -> str:
    """The part of the docstring that begins "Differs:", on one line."""
    found = _DIFFERS.search(trainer.__doc__ or "")
    return " ".join(found[1].split()) if found else ""
