"""What is written down of a run of the tiny policy. For `tiny_runs.py`."""

import json
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEPT = (
    "reward",
    "frac_reward_zero_std",
    "self_distill/student_entropy",
    "self_distill/teacher_entropy",
    "self_distill/has_teacher",
    "self_distill/log_ratio_start",
    "self_distill/context_truncated",
    "antisd/gate",
    "antisd/entropy",
    "antisd/warm_entropy",
    "opsd/clipped_tokens",
    "opsd/clipped_entry_mass",
    "completions/mean_length",
    "completions/length_p95",
    "completions/clipped_ratio",
    "completions/mentions_solution",
    "completions/epistemic_words",
)
"""The logged values that are written down, with those of end tokens: what the health checks and the pages read."""


@contextmanager
def complaints(trainer: Any) -> Iterator[list[list[Any]]]:
    """[rule, step] of each complaint of the health checks while the context is open."""
    found: list[list[Any]] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append([record.getMessage().split("'")[1], trainer.state.global_step])
    logger = logging.getLogger("trl_selfdistill.trainer.health_check")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def columns(history: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """The kept values, step by step, with five significant digits. `None` where a step did not log one."""
    lines = [entry for entry in history if "loss" in entry]
    names = sorted({name for line in lines for name in line if name in KEPT or name.startswith("end_tokens/")})
    return {name: [rounded(line.get(name)) for line in lines] for name in names}


def rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(f"{value:.5g}")


def save(path: Path, results: dict[str, Any]) -> None:
    """Replace the file whole, so that an interrupted run leaves the old one. Each list of numbers is one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"\[\n[^\[\]]*\]", lambda found: " ".join(found[0].split()), json.dumps(results, indent=1))
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text + "\n")
    os.replace(unfinished, path)
