"""A diagnosis as tables, JSON, a picture and one sentence."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trl_selfdistill.cli.diagnose_advice import advise
from trl_selfdistill.cli.diagnose_contexts import CONTEXTS
from trl_selfdistill.cli.diagnose_effects import Split
from trl_selfdistill.cli.diagnose_facts import ContextFacts, Diagnosis
from trl_selfdistill.cli.eval_metrics import Interval, shown
from trl_selfdistill.cli.eval_report import numbers
from trl_selfdistill.cli.eval_store import write_whole
from trl_selfdistill.record.card import versions

FEW = 20
"""Tokens below which a mean on epistemic tokens says little; marked in the table."""


def check_matplotlib() -> None:
    """Raise `ValueError` where the picture could not be drawn, before anything is sampled."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the picture needs matplotlib: pip install 'trl-selfdistill[report]'.")


def publish(diagnosis: Diagnosis, folder: Path, seconds: float) -> None:
    """Print the tables and the advice, write diagnosis.json and diagnosis.png."""
    from trl_selfdistill.cli.diagnose_picture import draw

    folder.mkdir(parents=True, exist_ok=True)
    rule, sentence = advise(diagnosis.findings)
    content = as_json(diagnosis) | {"seconds": round(seconds, 1), "advice": {"rule": rule, "sentence": sentence}}
    write_whole(folder / "diagnosis.json", json.dumps(content, indent=1, allow_nan=False, default=str) + "\n")
    draw(diagnosis, title_of(diagnosis), sentence, folder / "diagnosis.png")
    console = Console()
    for table in (answers_table(diagnosis), tokens_table(diagnosis), effects_table(diagnosis)):
        console.print(table)
    for note in diagnosis.notes:
        console.print(note, markup=False)
    console.print(f"\nAdvice (rule: {rule}). {sentence}", markup=False, style="bold")
    console.print(f"{seconds:.0f} s. diagnosis.json and diagnosis.png are in {folder}", markup=False)


def title_of(diagnosis: Diagnosis) -> str:
    s = diagnosis.settings
    return f"{Path(s['model']).name} on {s['dataset']} ({s['split']}): {s['problems']} problems x {s['n']} rollouts"


def answers_table(diagnosis: Diagnosis) -> Table:
    """What the teacher answers itself. The first row is the student: the same prompt."""
    table = make_table("What the teacher answers", "taught", "right", "tokens", "cut off", "epistemic")
    for name, found in diagnosis.contexts.items():
        others = [shown(metric, found.answers[metric]) for metric in ("length", "truncated", "epistemic_words")]
        means = [text.partition(" [")[0] for text in others]  # the intervals are in the picture and in the JSON
        add(table, name, f"{100 * found.taught:.0f} %", shown("pass@1", found.answers["pass@1"]), *means)
    return table


def tokens_table(diagnosis: Diagnosis) -> Table:
    """What the teacher says of the student's tokens."""
    table = make_table("What it says of the student's tokens", "u, epistemic", "n", "u, others", "entropy", "KL")
    for name, found in diagnosis.contexts.items():
        entropy = f"{signed(found.teacher_entropy, 2, plus=False)} ({signed(found.student_entropy, 2, plus=False)})"
        n = f"{found.epistemic_tokens}{' (few)' if 0 < found.epistemic_tokens < FEW else ''}"
        u = (nats(found.log_ratio_epistemic), n, nats(found.log_ratio_other))
        add(table, name, *u, entropy, signed(found.effects.divergence, 3, plus=False))
    table.caption = "nats a token; u = teacher minus student; in brackets the student's entropy"
    return table


def effects_table(diagnosis: Diagnosis) -> Table:
    """What the first steps would do to epistemic tokens and to others."""
    table = make_table("Predicted effect: epistemic tokens / others; length", "OPSD", "RLRT", "AntiSD")
    for name, found in diagnosis.contexts.items():
        if name == "none":
            continue  # the teacher is the student: nothing would happen
        e = found.effects
        add(
            table,
            name,
            f"{pair(e.opsd_shift, 3)}; {found.toward}",
            f"{pair(e.rlrt_weight, 2, plus=False)}; {found.away}",
            f"{pair(e.antisd_term, 3)}; {found.away}",
        )
    table.caption = "OPSD: change of probability; RLRT: weight in right rollouts, 1 is GRPO's; AntiSD: added to the "
    table.caption += "advantage"
    return table


def make_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("context", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def add(table: Table, name: str, *cells: str) -> None:
    table.add_row(name.replace("_", " "), *(cell.replace("[", "\\[") for cell in cells))


def signed(value: float, digits: int, *, plus: bool = True) -> str:
    return "-" if math.isnan(value) else f"{value:{'+' if plus else ''}.{digits}f}"


def nats(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def pair(split: Split, digits: int, *, plus: bool = True) -> str:
    return f"{signed(split.epistemic, digits, plus=plus)} / {signed(split.other, digits, plus=plus)}"


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """What `diagnosis.json` holds. A number that is not there is null."""
    return {
        "settings": dict(diagnosis.settings),
        "versions": dict(versions()),
        "notes": list(diagnosis.notes),
        "contexts": {name: context_json(name, found) for name, found in diagnosis.contexts.items()},
    }


def context_json(name: str, found: ContextFacts) -> dict[str, Any]:
    e = found.effects
    splits = {"rlrt_weight": e.rlrt_weight, "antisd_term": e.antisd_term, "opsd_shift": e.opsd_shift}
    return {
        "what": CONTEXTS[name][0],
        "taught": found.taught,
        "answers": {metric: numbers(interval) for metric, interval in found.answers.items()},
        "epistemic_tokens": found.epistemic_tokens,
        "log_ratio": {"epistemic": numbers(found.log_ratio_epistemic), "other": numbers(found.log_ratio_other)},
        "entropy": {"student": null(found.student_entropy), "teacher": null(found.teacher_entropy)},
        "divergence": null(e.divergence),
        **{key: {"epistemic": null(s.epistemic), "other": null(s.other)} for key, s in splits.items()},
        "length": {"opsd": found.toward, "rlrt": found.away, "antisd": found.away},
    }


def null(value: float) -> float | None:
    return None if math.isnan(value) else value
