"""Recorded runs that nobody trained, for the tests of the report."""

import math
import random
from pathlib import Path
from typing import Any

from trl_selfdistill.record.history import FOLDER, append_history
from trl_selfdistill.record.pieces import starts
from trl_selfdistill.record.token_log import write_rows

WORDS = [" wait", " so", " 12", " +", " 7", " =", " maybe", " the", " answer", " is", "\n", " therefore", " 19", "."]


def made_row(index: int, step: int, length: int, rng: random.Random, **changes: Any) -> dict[str, Any]:
    """A row of the token log with random numbers; `changes` overwrite it. Every sixth has no teacher."""
    tokens = [rng.choice(WORDS) for _ in range(length)]
    taught = index % 6 != 5
    s = [-rng.expovariate(1.5) for _ in tokens]
    u = [rng.gauss(0.1, 0.8) if token.strip() != "wait" else rng.gauss(-1.5, 0.5) for token in tokens]
    plain = rng.choice([-0.7, 0.9])
    context = f"the solution {index}: 19"
    only_taught: dict[str, Any] = {
        "context": context,
        "context_source": rng.choice(["peer", "gold"]),
        "teacher_prompt": f"<|user|>What is 12 + 7?\n\nSolution: {context}<|end|><|assistant|>",
        "student_logps": s,
        "teacher_logps": [min(0.0, a + b) for a, b in zip(s, u, strict=True)],
        "log_ratio": [min(-a, b) for a, b in zip(s, u, strict=True)],
        "student_entropy": [abs(x) * 0.7 for x in s],
        "teacher_entropy": [abs(x) * 0.5 for x in s],
        "weight": [1 + 0.3 * math.tanh(b) for b in u],
    }
    numbers = ("student_logps", "teacher_logps", "log_ratio", "student_entropy", "teacher_entropy", "weight")
    if not taught:
        only_taught = {name: [None] * length if name in numbers else None for name in only_taught}
    return {
        "step": step,
        "index": index,
        "group": index // 8,
        "prompt": '[{"role": "user", "content": "What is 12 + 7?"}]',
        "completion": "".join(tokens),
        "correct": index % 3 == 0,
        "reward": float(index % 3 == 0),
        "row_advantage": plain,
        "tokens": tokens,
        "offsets": starts(tokens),
        "advantage": [plain * (1 + 0.3 * math.tanh(b)) if taught else plain for b in u],
        "views": [],
        **only_taught,
        **changes,
    }


def untaught_row(length: int) -> dict[str, Any]:
    """What differs in a row of an algorithm that asks no teacher."""
    unsaid = ("teacher_logps", "log_ratio", "teacher_entropy")
    return {
        **dict.fromkeys(("context", "context_source", "teacher_prompt")),
        **{name: [None] * length for name in unsaid},
        **{name: [-1.0] * length for name in ("student_logps", "weight", "advantage")},
        "student_entropy": [0.5] * length,
        "row_advantage": 0.0,
    }


def made_run(
    folder: Path, *, steps: int = 3, rows: int = 8, length: int = 24, taught: bool = True, **changes: Any
) -> Path:
    """The folder of a run of `steps` logging steps. `taught=False` is that of an algorithm without a teacher."""
    rng = random.Random(str(folder.name))
    about = {"run": "made", "trainer": "RLRT", "weight": "rlrt/weight", "views": "teacher"}
    if not taught:
        about |= {"trainer": "OPSA", "weight": "opsa/advantage", "views": ""}
        changes = {**untaught_row(length), **changes}
    for step in range(1, steps + 1):
        made = [made_row(i, step, length, rng, **changes) for i in range(rows)]
        write_rows(folder / FOLDER, f"step_{step:06d}", made, about)
        logs = {
            "reward": step / steps,
            "self_distill/correct": 0.8 * step / steps,
            **({"self_distill/has_teacher": 5 / 6, "self_distill/teacher_entropy": 0.5} if taught else {}),
            "completions/mean_length": float(length),
            "completions/epistemic_words": 2.0 / step,
            "self_distill/student_entropy": 0.8,
        }
        append_history(folder, "made", step, logs)
    return folder
