"""Everything that a GPU has to say, one part after the other: `benchmarks/gpu.sh`, at most 8 minutes.

    benchmarks/gpu.sh                    # needs a CUDA device and pip install -e '.[dev]'
    benchmarks/gpu.sh --json h100.json
    benchmarks/gpu.sh --toy              # the same parts on a CPU at toy size, to try the script

Every part is a command of its own with its own time limit; what one leaves of its time, the next ones may use. A part
that fails or runs out of time stops none of the others, and what it had written by then counts. At the end: one JSON
file with the machine and all results, the rows of the tables in `benchmarks/README.md`, and an error where a part
failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_tables import tables

HERE = Path(__file__).parent
WHOLE = 480.0  # seconds, of all parts together
GRACE = 5.0  # seconds between the request to stop and the end of it
PACKAGES = ("torch", "triton", "trl", "transformers", "liger-kernel", "accelerate", "peft", "bitsandbytes")
PHASE = ("grpo", "rlrt", "antisd", "opsd", "trl-sdpo-full", "trl-sdft-full")


@dataclass(frozen=True)
class Part:
    name: str
    limit: float
    """Seconds that no earlier part may take from it."""
    command: list[str]
    out: Path
    """Where the command writes its results: JSON, or pytest's XML."""


def parts_of(toy: bool, folder: Path) -> list[Part]:
    """The parts, the most important first."""
    place = ["--device", "cpu"] if toy else ["--device", "cuda", "--dtype", "bfloat16"]
    large = ["--model", "qwen3-1.7b", "qwen3-8b", "--tokens", "4096", "8192", "16384", "--rounds", "3"]
    small = ["--model", "toy", "--tokens", "16", "--rounds", "1"]
    op = [*place, *(small if toy else large)]
    compiled = ["--variants", "liger"] if toy else ["--tokens", "4096", "--variants", "liger_compiled"]
    phase = ["--model", "smollm2", "qwen3-1.7b", "--kinds", "lora", "--no-growth", *place]
    phase += ["--toy", "--only", "opsd"] if toy else ["--shape", "256", "512", "512", "--only", *PHASE]
    selected = ["-k", "151936"] if toy else []

    def script(name: str, limit: float, file: str, *arguments: str) -> Part:
        out = folder / f"{name}.json"
        return Part(name, limit, [sys.executable, str(HERE / file), *arguments, "--json", str(out)], out)

    xml = folder / "tests.xml"
    pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu", f"--junitxml={xml}"]
    return [
        Part("tests", 130, [*pytest, *selected, str(HERE.parent / "tests/test_gpu.py")], xml),
        script("divergence", 90, "linear_divergence.py", *op, "--variants", "ours", "gemm", "naive", "trl", "liger"),
        script("logps", 70, "linear_logps.py", *op, "--both-heads"),
        script("phase", 130, "training_phase.py", *phase),
        script("compiled", 50, "linear_divergence.py", *op, *compiled),
    ]


def machine() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"python": sys.version.split()[0], "cuda": torch.version.cuda, "card": None}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        facts |= {"card": card.name, "memory_gb": card.total_memory / 1e9, "driver": driver()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    return facts


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError):
        return None


def run(part: Part, limit: float) -> str:
    """Run one part with its output on ours. Returns "ok", "failed with exit status ..." or "out of time"."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(part.command, cwd=HERE.parent, env=env, start_new_session=True)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        stop(process)
    return "ok" if status == 0 else f"failed with exit status {status}"


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a part that still runs, and all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def results_of(part: Part) -> Any:
    """What the part has written, None for nothing. A number that could not be had is null."""
    if not part.out.exists():
        return None
    if part.out.suffix == ".json":
        return json.loads(part.out.read_text(), parse_constant=lambda _: None)
    outcomes = {}
    for case in ElementTree.parse(part.out).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[case.get("name")] = kinds[0] if kinds else "passed"
    return outcomes


def run_all(parts: list[Part], out: Path, facts: dict[str, Any], whole: float = WHOLE) -> bool:
    """Run the parts and write `out` after each. Returns whether all went well."""
    start = time.monotonic()
    report: dict[str, Any] = {"machine": facts, "parts": {}}
    for i, part in enumerate(parts):
        began = time.monotonic() - start
        limit = max(1.0, whole - began - sum(later.limit for later in parts[i + 1 :]) - GRACE)
        print(f"\n[{began:4.0f} s] part {i + 1} of {len(parts)}, {part.name}, at most {limit:.0f} s", flush=True)
        print(f"         {' '.join(part.command)}\n", flush=True)
        status = run(part, limit)
        took = time.monotonic() - start - began
        print(f"\n[{began + took:4.0f} s] {part.name}: {status}", flush=True)
        try:
            results = results_of(part)
        except (ValueError, ElementTree.ParseError):  # it was stopped while it wrote
            results = None
        report["parts"][part.name] = {"status": status, "seconds": took, "command": part.command, "results": results}
        out.write_text(json.dumps(report, indent=1))
    if facts.get("toy"):
        print("\nToy sizes, not for the README:")
    print("\n".join(["", *tables(report["parts"]), "", f"Machine: {facts}", f"Results: {out}"]))
    bad = [name for name, done in report["parts"].items() if done["status"] != "ok"]
    print(f"Parts that failed: {', '.join(bad)}" if bad else "All parts went well.", flush=True)
    return not bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="on a CPU, at toy size")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="OUT", help="default: gpu.json")
    a = parser.parse_args()
    facts = {"toy": a.toy, **machine()}
    if facts["card"] is None and not a.toy:
        parser.error("torch sees no CUDA device here; --toy runs the parts on a CPU.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended too
    with tempfile.TemporaryDirectory() as folder:
        # A busy CPU needs longer, and nobody pays for it.
        whole = 5 * WHOLE if a.toy else WHOLE
        sys.exit(not run_all(parts_of(a.toy, Path(folder)), a.json.absolute(), facts, whole))


if __name__ == "__main__":
    main()
