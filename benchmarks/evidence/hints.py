"""How much a hint helps a policy that has not been trained: the worth of the teacher at the start.

    PYTHONPATH=benchmarks:examples python -m evidence.hints outputs/evidence/policies

Held-out problems of the pilot's worlds, 16 samples each, without a hint and with the task's own solution as one. The
policies are made where they are missing. The numbers of right samples go to benchmarks/results/evidence/policies.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

from evidence.markdown import table
from evidence.measures import SAMPLES, means
from evidence.plan import PILOT_WORLDS

FILE = Path(__file__).parents[1] / "results/evidence/policies.json"
COUNTS = ("right", "distinct")


def counted(task: str, world: int, cache: Path) -> dict[str, Any]:
    """The numbers of right samples and of distinct right routes of every held-out problem."""
    from evidence.measures import evaluation
    from evidence.policy import load_policy, policy_folder  # torch, which the table does not need
    from evidence.sampling import sample
    from evidence.task import HINT_TEMPLATE
    from evidence.tasks import make_task

    made = make_task(task, world)
    model, tokenizer = load_policy(policy_folder(made, cache))
    problems = made.split[1]
    plain = [made.prompt(problem) for problem in problems]
    hinted = [HINT_TEMPLATE.format(context=made.gold(p), prompt=made.prompt(p)) for p in problems]
    row: dict[str, Any] = {"task": task, "world": world}
    for name, prompts in (("plain", plain), ("hinted", hinted)):
        texts, _ = sample(model, tokenizer, prompts, samples=SAMPLES, limit=made.limit, seed=0)
        found = evaluation(made, problems, texts)
        row[name] = {key: found[key] for key in COUNTS}
    return row


def policies_table(rows: list[dict[str, Any]]) -> str:
    """Each policy without a hint and with one."""
    lines = []
    for row in rows:
        found = [means(*(row[name][key] for key in COUNTS), samples=SAMPLES) for name in ("plain", "hinted")]
        cells = [f"{found[0][m]:.3f} → {found[1][m]:.3f}" for m in ("pass1", "pass8", "routes")]
        lines.append([row["task"], row["world"], len(row["plain"]["right"]), *cells])
    return table(["task", "world", "problems", "pass@1, plain → with the hint", "pass@8", "routes"], lines)


def main(cache: Path, tasks: list[str]) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    rows = [counted(task, world, cache) for task in tasks for world in PILOT_WORLDS]
    FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(policies_table(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["routes", "sums", "chains"])
