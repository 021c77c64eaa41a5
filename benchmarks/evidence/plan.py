"""The plan: every run that will be made, written down before any result is seen.

    PYTHONPATH=benchmarks:examples python -m evidence.plan benchmarks/results/evidence/plan.json

A pair is a world: each world has wrong facts, a policy and held-out problems of its own, and one seed, which all
methods share. So pairs are independent, and a plain paired test is the right one. The learning rates are chosen in
worlds that are not reported.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evidence.methods import METHODS

STEPS, SWEEP_STEPS, SMOKE_STEPS = 100, 60, 4
PAIRS, OTHER_PAIRS = 25, 8
RATES = (1e-4, 3e-4, 1e-3)
SWEEP_WORLDS, STRENGTH_WORLDS, PILOT_WORLDS = (1000, 1001), (1002, 1003), (2000, 2001)
MAIN = ("grpo", "rlrt", "antisd", "opsd")
LATER = ("opsd_live", "opsd_ema", "sdpo_live", "sdpo_base", "rlrt_base", "rlrt_ema", "opsd_paced", "opsa")
"""Methods that joined when the first runs had been made: their runs stand at the end."""
FIRST = tuple(name for name in METHODS if name not in LATER)
LEFT_OUT = {
    "routes": (),
    "sums": (*LATER, "rlrt_gold", "antisd_gold", "opsd_gold", "rlsd_gold", "poweropd_gold"),
    "chains": (
        *("opsd_live", "sdpo_live", "rlrt_base", "rlrt_ema", "opsd_paced"),
        *("rlrt_gold", "antisd_gold", "rlsd_gold", "antisd_other_gold"),
        *("rlrt_own_peer", "rlrt_paced", "antisd_toward", "rlsd", "rlcsd", "poweropd", "opsa"),
    ),
}
"""Methods that a task does without. A sum has one right answer, so a right peer says what the gold solution says. On
`chains` it is for computing time: what the claims and controls need most is kept."""
PILOT_RATE = 3e-4
CHOSEN = "chosen"
"""In the place of a learning rate: the one that the sweep chooses for this method."""


def run_of(part: str, method: str, world: int, **fields: Any) -> dict[str, Any]:
    run = {"part": part, "task": "routes", "method": method, "world": world, "seed": 0, "steps": STEPS, **fields}
    extra = [f"{name}={value}" for name, value in run.get("overrides", {}).items()]
    words = [part, run["task"], method, *extra, f"w{world}", f"s{run['seed']}", f"lr{run.get('lr', CHOSEN)}"]
    return {"id": "-".join(words), "lr": CHOSEN, **run}


def rate_runs(task: str, methods: Sequence[str]) -> list[dict[str, Any]]:
    return [
        run_of("rates", method, world, task=task, steps=SWEEP_STEPS, lr=rate)
        for method in sorted(methods, key=lambda name: name not in MAIN)
        for rate in RATES
        for world in SWEEP_WORLDS
    ]


def strength_runs() -> list[dict[str, Any]]:
    swept = {name: method.strengths for name, method in METHODS.items() if method.strengths}
    return [
        run_of("strengths", name, world, steps=SWEEP_STEPS, overrides={field: value})
        for name, (field, values) in swept.items()
        for value in values
        for world in STRENGTH_WORLDS
    ]


def pairs_of(task: str, method: str) -> int:
    """Worlds in which a method is compared: more of them for the main methods, but for `chains`."""
    return PAIRS if method in MAIN and task != "chains" else OTHER_PAIRS


def compared(task: str) -> tuple[str, ...]:
    """The methods that the plan compares on a task."""
    return tuple(name for name in METHODS if name not in LEFT_OUT[task])


def main_runs(task: str, methods: Sequence[str]) -> list[dict[str, Any]]:
    """World by world, so that whatever is finished is made of whole pairs. The main methods come first."""
    main, others = [name for name in MAIN if name in methods], [name for name in methods if name not in MAIN]
    return [
        run_of("main", name, world, task=task)
        for names in (main, others)
        for world in range(PAIRS)
        for name in names
        if world < pairs_of(task, name)
    ]


def pilot_runs() -> list[dict[str, Any]]:
    """Is there something to lose? Asked before any comparison, in worlds that are not reported."""
    grid = [(method, world, seed) for world in PILOT_WORLDS for seed in (0, 1) for method in ("grpo", "rlrt")]
    return [run_of("pilot", method, world, seed=seed, lr=PILOT_RATE) for method, world, seed in grid]


def chains_runs() -> list[dict[str, Any]]:
    """The third task: a pilot of GRPO alone, then its methods in eight worlds."""
    pilot = [run_of("pilot", "grpo", world, task="chains", lr=PILOT_RATE) for world in PILOT_WORLDS]
    return [*pilot, *rate_runs("chains", compared("chains")), *main_runs("chains", compared("chains"))]


def smoke_runs() -> list[dict[str, Any]]:
    """Toy sizes: what is checked is that everything runs."""
    toy = {"steps": SMOKE_STEPS, "rollouts": 16, "samples": 8, "problems": 12, "warm_up": {"steps": 30, "batch": 32}}
    rates = [run_of("rates", name, 0, seed=seed, lr=PILOT_RATE, **toy) for name in MAIN for seed in (0, 1)]
    main = [run_of("main", name, 0, seed=seed, **toy) for name in MAIN for seed in (0, 1)]
    return rates + main + [run_of("pilot", "grpo", 0, task=task, lr=PILOT_RATE, **toy) for task in ("sums", "chains")]


def full_plan() -> list[dict[str, Any]]:
    """What joins later joins at the end."""
    runs = [*pilot_runs(), *rate_runs("routes", FIRST), *main_runs("routes", FIRST), *strength_runs()]
    runs += [*rate_runs("sums", compared("sums")), *main_runs("sums", compared("sums"))]
    return [*runs, *rate_runs("routes", LATER), *main_runs("routes", LATER), *chains_runs()]


def main(path: Path, kind: str = "full") -> None:
    runs = {"full": full_plan, "smoke": smoke_runs}[kind]()
    if len({run["id"] for run in runs}) != len(runs):
        raise ValueError("Two runs of the plan have the same name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    print(f"{len(runs)} runs in {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
