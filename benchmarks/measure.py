"""What the benchmarks of the ops share: interleaved times, growth of peak memory, the rate of a bare product."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import torch

MODELS = {"smollm2-135m": (576, 49152), "qwen3-1.7b": (2048, 151936), "qwen3-8b": (4096, 151936)}  # (H, V)


def seconds(work: Callable[[], object], device: str) -> float:
    if device != "cuda":
        start = time.process_time()
        work()
        return time.process_time() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def medians(work: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each piece of work over interleaved rounds; nan where memory does not suffice."""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for i in range(rounds + 1):  # the first round warms up: allocator, compilers
        for name, taken in samples.items():
            try:
                value = seconds(work[name], device)
            except torch.OutOfMemoryError:
                value = float("nan")
            if i:
                taken.append(value)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def resident(key: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def growth(work: Callable[[], object], device: str) -> float:
    """Bytes by which the peak of `work` exceeds the level before it. On a CPU: call it in a fresh process."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def last_number_of(script: str, *arguments: str) -> float:
    """Runs a script in a fresh process. Returns the last word that it prints, nan where it fails."""
    # Without the threshold the allocator keeps freed blocks of the set-up and hides growth.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, script, *arguments], env=env, capture_output=True, text=True)
    return float(run.stdout.split()[-1]) if run.returncode == 0 else float("nan")


def product_rate(hidden: torch.Tensor, head: torch.Tensor, device: str) -> float:
    """Floating point operations per second of the bare product of (N, H) and (H, V), the ceiling of every variant."""
    out = hidden @ head
    best = min(seconds(lambda: torch.mm(hidden, head, out=out), device) for _ in range(4))
    return 2 * hidden.numel() * head.shape[1] / best
