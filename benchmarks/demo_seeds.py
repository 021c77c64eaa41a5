"""How sure the rise of the demo is: `examples/quickstart.py` with the seeds 0 to 7, one after the other.

`PYTHONPATH=examples OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/demo_seeds.py` writes
benchmarks/results/demo_seeds.json after each seed, skips the seeds that are there already, and prints the table of
docs/quickstart.md. `--tiny` is the demo's own. A seed decides the problems, the adapter's first weights and the draw of
the rollouts.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import quickstart
import torch

RESULTS = Path(__file__).parent / "results/demo_seeds.json"
GOAL = 0.6
"""Held-out accuracy that a run should pass."""


@dataclass
class SeedRun:
    """One run of the demo. Seconds are the time that passed; CPU seconds leave other work on the machine out."""

    before: float
    after: float
    seconds: float
    cpu_seconds: float
    training_cpu_seconds: float
    rewards: list[float]
    truncated: list[float]
    grad_norms: list[float]
    without_signal: list[float]
    taught: list[float]


def one_seed(args: argparse.Namespace) -> SeedRun:
    """Run the demo once. By step: `truncated` and `taught` are shares of completions, `without_signal` of groups."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = quickstart.run(args)
    steps = [entry for entry in found.history if "reward" in entry]
    return SeedRun(
        before=found.before,
        after=found.after,
        seconds=round(time.perf_counter() - wall, 1),
        cpu_seconds=round(time.process_time() - cpu, 1),
        training_cpu_seconds=round(found.training_cpu_seconds, 1),
        rewards=[step["reward"] for step in steps],
        truncated=[step["completions/clipped_ratio"] for step in steps],
        grad_norms=[step["grad_norm"] for step in steps],
        without_signal=[step["frac_reward_zero_std"] for step in steps],
        taught=[step["self_distill/has_teacher"] for step in steps],
    )


def load(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The results so far. Raises `ValueError` if they were taken with other settings."""
    if not path.exists():
        return {"settings": settings, "runs": {}}
    results = json.loads(path.read_text())
    if results["settings"] != settings:
        raise ValueError(
            f"{path} holds runs with other settings: {results['settings']} instead of {settings}. Delete the file, or "
            "name another one with --results."
        )
    return results


def save(path: Path, results: dict[str, Any]) -> None:
    """Replace the file whole, so that an interrupted run leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(unfinished, path)


def measure(args: argparse.Namespace, path: Path, seeds: list[int]) -> dict[str, Any]:
    """Run the seeds of which `path` holds no result."""
    settings = dict(quickstart.TINY if args.tiny else quickstart.SMOLLM2)
    results = load(path, settings | ({"max_steps": args.steps} if args.steps else {}))
    for seed in seeds:
        if str(seed) in results["runs"]:
            continue
        print(f"seed {seed}", flush=True)
        args.seed = seed
        run = {**asdict(one_seed(args)), "torch": torch.__version__, "threads": torch.get_num_threads()}
        results["runs"][str(seed)] = run
        save(path, results)
    return results


def table(results: dict[str, Any]) -> str:
    """The runs in markdown."""
    lines = [
        "| seed | before | after | reward, first step | last three steps | truncated at the end | CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, run in sorted(results["runs"].items(), key=lambda item: int(item[0])):
        first, last = run["rewards"][0], statistics.mean(run["rewards"][-3:])
        rates = f"{run['before']:.0%} | {run['after']:.0%} | {first:.0%} | {last:.0%} | {run['truncated'][-1]:.0%}"
        lines.append(f"| {seed} | {rates} | {run['cpu_seconds']:.0f} |")
    return "\n".join(lines).replace("%", " %")


def summary(results: dict[str, Any]) -> str:
    """The runs in one sentence."""
    runs = results["runs"].values()
    before, after = ([run[name] for run in runs] for name in ("before", "after"))
    passed = sum(value > GOAL for value in after)
    return (
        f"{passed} of {len(after)} seeds end above {GOAL:.0%}: from {min(before):.0%}–{max(before):.0%} to "
        f"{min(after):.0%}–{max(after):.0%}, median {statistics.median(after):.0%}"
    ).replace("%", " %")


def main(argv: list[str] | None = None) -> None:
    parser = quickstart.parser()
    parser.description = __doc__
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file with the runs, which is written")
    args = parser.parse_args(argv)
    quickstart.quiet()
    results = measure(args, args.results, args.seeds)
    print(table(results))
    print(summary(results))


if __name__ == "__main__":
    main()
