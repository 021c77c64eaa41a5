"""What the benchmarks share: interleaved times, growth of peak memory, the rate of a bare product, failures."""

import os
import platform
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

MODELS = {"toy": (32, 512), "smollm2-135m": (576, 49152), "qwen3-1.7b": (2048, 151936), "qwen3-8b": (4096, 151936)}
"""(H, V)"""

NAN = float("nan")
FAILED: list[str] = []
"""What raised. A script goes on without it, so that one variant does not cost the others, and ends with an error."""


def tried(name: str, work: Callable[[], float]) -> float:
    """The number, or nan where memory does not suffice or where it raises, which is printed and noted in `FAILED`."""
    try:
        return work()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    except Exception:
        traceback.print_exc()
        FAILED.append(name)
    return NAN


def end() -> None:
    """The end of a script: an error where something failed."""
    if FAILED:
        sys.exit(f"failed: {', '.join(FAILED)}")


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
    """Median seconds of each piece of work over interleaved rounds; nan where it cannot be had (`tried`)."""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for i in range(rounds + 1):  # the first round warms up: allocator, compilers
        for name, taken in samples.items():
            if NAN in taken:  # it will not do better the second time
                continue
            value = tried(name, lambda name=name: seconds(work[name], device))
            if i or value != value:
                taken.append(NAN if value != value else value)
    return {name: NAN if NAN in taken else statistics.median(taken) for name, taken in samples.items()}


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


def ratio(a: float, b: float) -> float:
    """nan for nothing: a toy may not grow by a page."""
    return a / b if b else NAN


def product_rate(hidden: torch.Tensor, head: torch.Tensor, device: str) -> float:
    """Floating point operations per second of the bare product of (N, H) and (H, V), the ceiling of every variant."""
    out = hidden @ head
    best = min(seconds(lambda: torch.mm(hidden, head, out=out), device) for _ in range(4))
    return 2 * hidden.numel() * head.shape[1] / best


def machine() -> dict[str, Any]:
    """Where something is measured. Runs are chaotic, too: another processor rounds otherwise."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.M) if info.exists() else []
    cpu = names[0] if names else platform.processor()
    return {"cpu": cpu, "torch": torch.__version__, "threads": torch.get_num_threads()}
