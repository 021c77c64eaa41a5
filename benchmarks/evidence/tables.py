"""The tables and pictures of docs/evidence.md, from the raw numbers.

PYTHONPATH=benchmarks python -m evidence.tables              # writes them into the page
PYTHONPATH=benchmarks python -m evidence.tables --check      # an error where the page says something else
"""

import argparse
import json
import sys
from math import inf
from pathlib import Path
from statistics import mean, median
from typing import Any

from marks import filled

from evidence import analysis, hints, power, smollm
from evidence.figures import draw
from evidence.findings import controls, direct, findings, teachers
from evidence.markdown import LABELS, NOTHING, interval, numbers, table
from evidence.methods import METHODS
from evidence.plan import MAIN, OTHER_PAIRS, compared
from evidence.raw import Result, read
from evidence.verdicts import claims_table

ROOT = Path(__file__).parents[2]
PAGE, RAW, ASSETS = ROOT / "docs/evidence.md", ROOT / "benchmarks/results/evidence/runs.parquet", ROOT / "docs/assets"
TASKS = ("routes", "sums", "chains")
KINDS = ("peer", "gold", "controls")
"""What a teacher sees: each has a table."""
AREAS = ("pass1", "pass8", "routes")
HARDER = ("routes", "chains")
"""The tasks with several ways to be right: the claims and the teachers' weights are compared there."""


def in_order(methods: dict[str, list[Result]]) -> list[str]:
    return sorted(methods, key=lambda name: (MAIN.index(name) if name in MAIN else len(MAIN), name))


def kind_of(name: str) -> str:
    """The table in which a method stands: by what its teacher sees."""
    if METHODS[name].trainer == "OPSATrainer":
        return "controls"
    context = METHODS[name].config.get("context", "peer")
    return {"own_peer": "peer", "none": "controls", "other_gold": "controls"}.get(context, context)


def of_kind(methods: dict[str, list[Result]], kind: str) -> dict[str, list[Result]]:
    """The methods of a table, with GRPO, which is compared with all of them. Nothing where it would be alone."""
    found = {name: runs for name, runs in methods.items() if name == "grpo" or kind_of(name) == kind}
    return found if set(found) - {"grpo"} else {}


def results_table(methods: dict[str, list[Result]]) -> str:
    """What each method reached, and its 95 % interval over worlds and problems. Main methods in fewer worlds, too."""
    rows = []
    for name in in_order(methods):
        rows.append([name, *results_of(methods[name])])
        few = [run for run in methods[name] if run["world"] < OTHER_PAIRS]
        if len(few) < len(methods[name]) and set(methods) - set(MAIN):
            rows.append([f"{name}, the first {OTHER_PAIRS} worlds", *results_of(few)])
    areas = [f"area {LABELS[metric]}" for metric in AREAS]
    return table(["method", "worlds", "rate", *areas, "pass@1, end", "pass@8, end", "routes, end"], rows)


def results_of(runs: list[Result]) -> list[Any]:
    cells = []
    for metric in AREAS:
        line, (low, high) = analysis.band(runs, metric)
        cells.append(f"{line[-1]:.3f} {interval(low[-1], high[-1])}")
    areas = [f"{mean(analysis.by_world(runs, metric).values()):.3f}" for metric in AREAS]
    return [len(runs), *(f"{rate:g}" for rate in sorted({run["lr"] for run in runs})), *areas, *cells]


def costs_table(methods: dict[str, list[Result]]) -> str:
    """What it took, and how the completions look at the end."""
    goal = {(r["world"], r["seed"]): r["curve"][-1]["pass1"] for r in methods.get("grpo", [])}
    rows = []
    for name in in_order(methods):
        runs = methods[name]
        last = [run["curve"][-1] for run in runs]
        shared = [run for run in runs if (run["world"], run["seed"]) in goal]
        steps = [analysis.steps_to(run, goal[run["world"], run["seed"]]) for run in shared]
        looks = [f"{mean(point[key] for point in last):.3f}" for key in ("length", "entropy", "legal", "repaired")]
        seconds, flops = mean(point["cpu_seconds"] for point in last), mean(run["flops_per_step"] for run in runs)
        reach = "-" if not steps else "not reached" if median(steps) == inf else f"{median(steps):.0f}"
        rows.append([name, reach, *looks, f"{seconds:.0f}", f"{flops / 1e9:.1f}"])
    head = ["method", "steps to GRPO's pass@1", "length", "entropy", "legal", "repaired", "CPU seconds", "GFLOP a step"]
    return table(head, rows)


def differences_table(methods: dict[str, list[Result]], task: str) -> str:
    """Paired differences to GRPO in the primary metrics."""
    if "grpo" not in methods:
        return NOTHING
    rows = []
    for family in analysis.families(methods, task):
        for d in family:
            rows.append([d.method, LABELS[d.metric], *numbers(d), f"{d.p:.3g}", f"{d.corrected:.3g}"])
    return table(["method - grpo", "area under", "pairs", "mean", "95 %", "SD of a pair", "p", "p, Holm"], rows)


def sweep_table(results: dict[str, Result], part: str, task: str) -> str:
    """Area under pass@1 by learning rate, or by strength, in the worlds of the sweep."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results.values():
        if (result["part"], result["task"]) == (part, task):
            what = (
                f"{result['lr']:g}"
                if part == "rates"
                else ", ".join(f"{k}={v}" for k, v in result["overrides"].items())
            )
            found.setdefault((result["method"], what), []).append(result)
    rows = []
    for (method, what), runs in sorted(found.items()):
        cells = [f"{mean(analysis.by_world(runs, metric).values()):.3f}" for metric in ("pass1", "pass8", "routes")]
        rows.append([method, what, len(runs), *cells])
    return table(
        ["method", "rate" if part == "rates" else "strength", "worlds", "area pass@1", "area pass@8", "area routes"],
        rows,
    )


def pilot_table(results: dict[str, Result], task: str) -> str:
    """Does training take anything away? First and last point of each run."""
    rows = []
    for name, runs in sorted(analysis.grouped(results, "pilot", task).items()):
        for run in sorted(runs, key=lambda r: (r["world"], r["seed"])):
            ends = [
                f"{run['curve'][0][m]:.3f} → {run['curve'][-1][m]:.3f}" for m in ("pass1", "pass8", "routes", "legal")
            ]
            rows.append([name, run["world"], run["seed"], *ends, f"{run['curve'][-1]['repaired']:.3f}"])
    return table(["method", "world", "seed", "pass@1", "pass@8", "routes", "legal", "repaired"], rows)


def curve_table(results: dict[str, Result], task: str) -> str:
    """The pilot on its way: means over its runs at every evaluation."""
    runs = [run for runs in analysis.grouped(results, "pilot", task).values() for run in runs]
    rows = []
    for points in zip(*(run["curve"] for run in runs), strict=True):
        looks = [f"{mean(point[m] for point in points):.3f}" for m in ("pass1", "pass8", "routes", "legal", "repaired")]
        rows.append([points[0]["step"], *looks])
    return table(["step", "pass@1", "pass@8", "routes", "legal", "repaired"], rows)


def losses_table(results: dict[str, Result], part: str, task: str) -> str:
    """The last point minus the first of the same run: below 0, training took something away."""
    rows = []
    for name, runs in sorted(analysis.grouped(results, part, task).items()):
        for metric in analysis.PRIMARY if len(runs) > 1 else ():
            rows.append([name, LABELS[metric], *numbers(analysis.loss_from_start(runs, metric))])
    return table(["method", "last - first", "runs", "mean", "95 %", "SD of a run"], rows)


def matched_table(methods: dict[str, list[Result]]) -> str:
    """Paired differences to GRPO where both have the same pass@1."""
    rows = []
    for name in in_order(methods):
        pairs = {(r["world"], r["seed"]) for r in methods[name]} & {
            (r["world"], r["seed"]) for r in methods.get("grpo", [])
        }
        for metric in analysis.PRIMARY if name != "grpo" and len(pairs) > 1 else ():
            found = analysis.at_the_same_pass1(methods[name], methods["grpo"], metric)
            rows.append([name, LABELS[metric], *(numbers(found) if found else "----")])
    return table(["method - grpo", "at the same pass@1", "pairs", "mean", "95 %", "SD of a pair"], rows)


def blocks(results: dict[str, Result]) -> dict[str, str]:
    """Everything on the page that is made from numbers, by its mark."""
    made = {"power": power.table(), "policies": hints.policies_table(json.loads(hints.FILE.read_text()))}
    for task, mark in (("routes", ""), ("chains", " chains")):
        made[f"pilot{mark}"] = pilot_table(results, task)
        made |= {f"losses {part}{mark}": losses_table(results, part, task) for part in ("pilot", "main")}
    made["curve chains"] = curve_table(results, "chains")
    for task in TASKS:
        methods = analysis.grouped(results, "main", task)
        made[f"findings {task}"], made[f"findings controls {task}"] = findings(methods, task), controls(methods)
        if task in HARDER:
            made[f"findings teachers {task}"], made[f"findings direct {task}"] = teachers(methods), direct(methods)
            made[f"claims {task}"] = claims_table(methods, task)
        for kind in [kind for kind in KINDS if any(kind_of(name) == kind for name in compared(task) if name != "grpo")]:
            made[f"results {task} {kind}"] = results_table(of_kind(methods, kind))
        made[f"costs {task}"] = costs_table(methods)
        made[f"differences {task}"] = differences_table(methods, task)
        made[f"matched {task}"] = matched_table(methods)
        made[f"rates {task}"] = sweep_table(results, "rates", task)
    checkpoint = smollm.load()
    made["smollm start"], made["smollm"] = smollm.starts_table(checkpoint), smollm.results_table(checkpoint)
    made["strengths routes"] = sweep_table(results, "strengths", "routes")
    return made


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, default=RAW)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--check", action="store_true", help="write nothing; an error where the page differs")
    a = parser.parse_args(given)
    results = read(a.raw) if a.raw.exists() else {}
    page = filled(a.page.read_text(), blocks(results))
    if a.check:
        sys.exit(0 if page == a.page.read_text() else f"{a.page} is not what {a.raw} says: run evidence.tables")
    a.page.write_text(page)
    for task in TASKS:
        draw(analysis.grouped(results, "main", task), a.assets / f"evidence_{task}.png", task)


if __name__ == "__main__":
    main()
