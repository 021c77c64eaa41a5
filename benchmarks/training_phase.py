"""CPU seconds and peak memory of one training step without its generation: GRPO, our trainers and TRL's.

    OMP_NUM_THREADS=1 python benchmarks/training_phase.py --small            # one shape, one round
    OMP_NUM_THREADS=1 python benchmarks/training_phase.py --json phase.json  # three shapes and the growth: hours
    python benchmarks/training_phase.py --device cuda --dtype bfloat16
    OMP_NUM_THREADS=1 python benchmarks/training_phase.py --only grpo rlrt --kinds lora --shape 64 192 128

Scripted rollouts: every trainer gets the same prompt, the same eight completions of random letters and the same rewards
(right, wrong, right ...); nothing is generated. Every teacher's prompt has the tokens of the context and of the prompt.
The model has the shape of SmolLM2-135M or of Qwen3-1.7B, and random weights. All settings are the trainers' defaults,
but for whose weights TRL's teachers have: those of the trainer of ours that they stand beside. `rlrt-skip` is RLRT with
`skip_unused_scores`, which leaves out the wrong half.

Measured is what lies between the beginning of a training step and the end of its optimiser step: teacher, loss,
backward, clipping, optimiser. Each (variant, round) has a trainer of its own, on a CPU in a process of its own, and one
short step that warms up; variants are interleaved. A ratio to GRPO is the median over the rounds of the ratio in the
round. Beside it stands the ratio of the operations counted by `trl_selfdistill/cli/flops.py`: with the teacher's prompt
encoded once per rollout, and once in all.

CPU: process time of one thread, and the growth of the peak resident set, in a run apart in which freed blocks go back
to the system at once. CUDA: wall time between synchronisations, and the growth of `max_memory_allocated`.
"""

import argparse
import ctypes
import gc
import itertools
import json
import math
import multiprocessing
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import end, tried
from phase_tables import print_comparison, print_growth
from phase_variants import MODELS, PARTS, VARIANTS, counted, trainer_of
from transformers import PrinterCallback, TrainerCallback

from trl_selfdistill.cli.flops import Shape

SHAPES = (Shape(64, 192, 128), Shape(256, 512, 256), Shape(256, 1024, 1024))
KINDS = ("lora", "full")
GROWTH = ("grpo", "rlrt", "antisd", "opsd")


class Watch(TrainerCallback):
    """Seconds and bytes of the last training step, and the seconds of some of its parts."""

    def __init__(self, device: str) -> None:
        self.on_cuda = device == "cuda"
        self.seconds, self.bytes = 0.0, 0
        self.parts: dict[str, float] = {}

    def time(self, trainer: Any, part: str, method: str) -> None:
        """Count the seconds in `trainer.method` as `part`."""
        original = getattr(trainer, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            out = original(*args, **kwargs)
            self.parts[part] = self.parts.get(part, 0.0) + self.now() - start
            return out

        setattr(trainer, method, timed)

    def now(self) -> float:
        if not self.on_cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = resident("VmRSS")
        self.parts.clear()
        self._start = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = self.now() - self._start
        peak = torch.cuda.max_memory_allocated() if self.on_cuda else resident("VmHWM")
        self.bytes = peak - self._before


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(a: argparse.Namespace, variant: str, kind: str, shape: Shape, memory: bool) -> dict[str, Any]:
    """One short step, then the one that counts. In a process of its own."""
    if a.device == "cpu":
        torch.set_num_threads(1)
        if memory:
            # The threshold above which freed blocks go back to the system, so that the resident set is what is in use.
            ctypes.CDLL(None).mallopt(-3, 65536)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        trainer, watch = trainer_of(a, variant, kind, shape, folder), Watch(a.device)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(watch)
        for part, method in PARTS.get(variant, {}).items():
            watch.time(trainer, part, method)
        trainer.train()
    return {"seconds": watch.seconds, "mb": watch.bytes / 1e6, "parts": watch.parts}


def apart(a: argparse.Namespace, variant: str, kind: str, shape: Shape, *, memory: bool = False) -> dict[str, Any]:
    """`measure` in a new process, forked with the imports done; nan where memory does not suffice or where it raises.

    On CUDA in this process: the allocator counts from the level before the step, whatever came before.
    """
    taken: dict[str, Any] = {"seconds": math.nan, "mb": math.nan, "parts": {}}

    def work() -> float:
        if a.device == "cuda":
            gc.collect()  # the trainer before
            torch.cuda.empty_cache()
            taken.update(measure(a, variant, kind, shape, memory))
        else:
            try:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
                    taken.update(pool.submit(measure, a, variant, kind, shape, memory).result())
            except BrokenProcessPool:  # the system ends processes that take too much
                pass
        return 0.0

    tried(f"{kind} {variant}", work)
    what = f"{taken['mb']:.0f} MB" if memory else f"{taken['seconds']:.2f} s"
    print(f"  {kind:4} {variant:13} {shape}: {what}", flush=True)
    return taken


def compare(a: argparse.Namespace, kind: str, shape: Shape) -> dict[str, dict[str, Any]]:
    """Seconds of each round, peak and ratios of each variant."""
    rounds = [{variant: apart(a, variant, kind, shape) for variant in a.only} for _ in range(a.rounds)]
    if a.device == "cpu":
        held = {variant: apart(a, variant, kind, shape, memory=True)["mb"] for variant in a.only}
    else:
        held = {variant: max(taken[variant]["mb"] for taken in rounds) for variant in a.only}
    base = counted(a, "grpo", kind, shape, shared=False)
    return {
        variant: {
            "seconds": [taken[variant]["seconds"] for taken in rounds],
            "shares": shares([taken[variant] for taken in rounds]),
            "ratio": statistics.median(taken[variant]["seconds"] / taken["grpo"]["seconds"] for taken in rounds),
            "counted": counted(a, variant, kind, shape, shared=False) / base,
            "counted_shared": counted(a, variant, kind, shape, shared=True) / base,
            "mb": held[variant],
            "mb_ratio": held[variant] / held["grpo"] if held["grpo"] else math.nan,
        }
        for variant in a.only
    }


def shares(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Median share of the step in each part: the teacher, the loss without it, the rest (backward and optimiser)."""
    found = []
    for taken in rounds:
        parts = dict(taken["parts"])
        if not parts:
            continue
        if "teacher in the loss" in parts:
            parts["teacher"] = parts.pop("teacher in the loss")
            parts["loss"] -= parts["teacher"]
        parts["backward, optimiser, the rest"] = taken["seconds"] - sum(parts.values())
        found.append({part: seconds / taken["seconds"] for part, seconds in parts.items()})
    return {part: statistics.median(each[part] for each in found) for part in (found[0] if found else ())}


def growth(a: argparse.Namespace, axis: str, sizes: list[int], shape: Shape) -> dict[str, dict[str, Any]]:
    """Seconds of LoRA steps of four sizes, and the exponent k of a fit seconds ~ size^k, measured and counted."""
    shapes = [replace(shape, **{axis: size}) for size in sizes]
    found = {}
    for variant in [v for v in GROWTH if v in a.only]:
        taken = [apart(a, variant, "lora", grown)["seconds"] for grown in shapes]
        operations = [float(counted(a, variant, "lora", grown, shared=True)) for grown in shapes]
        found[variant] = {
            "sizes": sizes,
            "seconds": taken,
            "exponent": exponent(sizes, taken),
            "counted": exponent(sizes, operations),
        }
    return found


def exponent(sizes: list[int], costs: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the first shape, one round, no growth")
    parser.add_argument("--toy", action="store_true", help="a model of a few weights, to try the script")
    parser.add_argument("--model", choices=tuple(MODELS), nargs="+", default=["smollm2"])
    parser.add_argument("--only", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), help="grpo is always run")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--shape", type=int, nargs=3, metavar=("P", "C", "T"), help="one shape, in place of the three")
    parser.add_argument("--rounds", type=int, default=None, help="3, or 1 with --small")
    parser.add_argument("--no-growth", dest="growth", action="store_false")
    parser.add_argument("--no-checkpointing", dest="checkpointing", action="store_false")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all samples to this file")
    a = parser.parse_args(given)
    a.models, a.model = a.model, a.model[0]
    a.only = list(dict.fromkeys(["grpo", *a.only]))
    a.rounds = a.rounds or (1 if a.small or a.toy else 3)
    a.growth = a.growth and not a.small
    a.shapes = (Shape(16, 24, 12, 4),) if a.toy else SHAPES[:1] if a.small else SHAPES
    if a.shape:
        a.shapes = (Shape(*a.shape),)
    return a


def main(given: list[str] | None = None) -> None:
    a = arguments(given)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {a.device}, {a.dtype}, checkpointing {'on' if a.checkpointing else 'off'}")
    results: dict[str, Any] = {"comparison": [], "growth": {}}

    def save() -> None:
        if a.json:
            a.json.write_text(json.dumps(results, indent=1))

    for model, kind, shape in itertools.product(a.models, a.kinds, a.shapes):
        a.model = model
        rows = compare(a, kind, shape)
        results["comparison"].append({"model": model, "kind": kind, "shape": asdict(shape), "variants": rows})
        print_comparison(model, kind, shape, rows)
        save()
    a.model = a.models[0]
    if a.growth:
        axes = {"completion": [64, 128, 256, 512], "rollouts": [2, 4, 8, 16]}
        toy = {"completion": [10, 12, 14, 16], "rollouts": [2, 3, 4, 5]}
        for axis, sizes in (toy if a.toy else axes).items():
            results["growth"][axis] = growth(a, axis, sizes, a.shapes[0])
            print_growth(axis, results["growth"][axis])
            save()
    end()


if __name__ == "__main__":
    main()
