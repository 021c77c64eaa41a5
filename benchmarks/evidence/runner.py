"""Makes the runs of a plan, one process per core. What is finished is skipped, so it can be stopped at any time.

    PYTHONPATH=benchmarks:examples OMP_NUM_THREADS=1 python -m evidence.runner PLAN --out outputs/evidence
    ... --parts pilot --jobs 1 --minutes 30

Each run leaves one JSON file, written when it is finished. A run that fails leaves its traceback beside them, is tried
again the next time, and makes the end an error. `evidence.raw` makes one parquet file of all.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from evidence.methods import missing
from evidence.plan import CHOSEN
from evidence.rates import chosen_rate
from evidence.raw import finished

Run = dict[str, Any]


def one_run(run: Run, out: Path) -> str:
    """Make the run in this process. Its state in one word."""
    import torch

    from evidence.training import train  # seconds of imports, which the parent does not need

    torch.set_num_threads(1)
    file, failed = out / f"{run['id']}.json", out / f"{run['id']}.failed"
    try:
        result = train(run, out / "policies")
    except Exception:
        failed.write_text(traceback.format_exc())
        return "failed"
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result))
    unfinished.replace(file)
    failed.unlink(missing_ok=True)
    return f"pass@1 {result['curve'][-1]['pass1']:.3f}"


def runnable(runs: list[Run]) -> list[Run]:
    """Without the methods whose trainers are not there, which are named."""
    absent = missing(sorted({run["method"] for run in runs}))
    for name, trainer in absent.items():
        print(f"skipped: {name} (trl_selfdistill has no {trainer})")
    return [run for run in runs if run["method"] not in absent]


def phases(runs: list[Run]) -> Iterator[list[Run]]:
    """Runs whose rate is given, then those whose rate the former decide."""
    yield [run for run in runs if run["lr"] != CHOSEN]
    yield [run for run in runs if run["lr"] == CHOSEN]


def with_rates(runs: list[Run], plan: list[Run], out: Path) -> list[Run]:
    """Each run with a rate in numbers. Those whose sweep is not finished are left for the next time, and named."""
    rates, ready, results = {}, [], finished(out)
    for run in runs:
        key = run["task"], run["method"]
        if run["lr"] == CHOSEN and key not in rates:
            rates[key] = chosen_rate(plan, results, *key)
            if rates[key] is None:
                print(f"skipped: {key[1]} on {key[0]} (its sweep of learning rates is not finished)")
        rate = run["lr"] if run["lr"] != CHOSEN else rates[key]
        ready += [{**run, "lr": rate}] if rate is not None else []
    return ready


def make_all(runs: list[Run], out: Path, *, jobs: int, deadline: float) -> int:
    """The number of runs that failed. After the deadline no run is begun."""
    context = multiprocessing.get_context("spawn")
    begun, queue, done, failed = time.monotonic(), list(runs), 0, 0
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        going: dict[Future[str], Run] = {}
        while queue or going:
            while queue and len(going) < jobs and time.monotonic() < deadline:
                run = queue.pop(0)
                going[pool.submit(one_run, run, out)] = run
            if not going:
                print(f"out of time: {len(queue)} runs are left")
                break
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                run, state = going.pop(future), future.result()
                done, failed = done + 1, failed + (state == "failed")
                left = (time.monotonic() - begun) / done * (len(queue) + len(going)) / 60
                print(f"{done} of {len(runs)}: {run['id']}: {state}; about {left:.0f} minutes left", flush=True)
    return failed


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    for name in ("part", "task", "method"):
        parser.add_argument(f"--{name}s", dest=name, nargs="+", help=f"only these {name}s of the plan")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    a = arguments(given)
    (a.out / "policies").mkdir(parents=True, exist_ok=True)
    plan = json.loads(a.plan.read_text())
    named = {name: getattr(a, name) for name in ("part", "task", "method")}
    wanted = [run for run in plan if all(names is None or run[k] in names for k, names in named.items())]
    wanted, failed, deadline = runnable(wanted), 0, time.monotonic() + 60 * a.minutes
    for phase in phases(wanted):
        left = [run for run in with_rates(phase, plan, a.out) if not (a.out / f"{run['id']}.json").exists()]
        print(f"{len(phase)} runs, {len(left)} to be made")
        failed += make_all(left, a.out, jobs=a.jobs, deadline=deadline)
    if failed:
        sys.exit(f"{failed} runs failed: see {a.out}/*.failed")


if __name__ == "__main__":
    main()
