"""The benchmarks that the documentation quotes for a CPU, one after the other: about half an hour.

    OMP_NUM_THREADS=1 python benchmarks/cpu.py                 # what is there with this command is skipped
    OMP_NUM_THREADS=1 python benchmarks/cpu.py --only logps views
    python benchmarks/pages.py                                 # afterwards: writes the figures into the pages

Each part leaves `benchmarks/results/cpu/NAME.json`: the command, the machine, the results. `recording` needs the model
that `examples/smollm2.py` writes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure

HERE = Path(__file__).parent
RESULTS = HERE / "results/cpu"
BF16, ROUNDS = ("--dtype", "bfloat16"), ("--rounds", "3")
PARTS: dict[str, tuple[str, ...]] = {
    "divergence": ("linear_divergence.py", *ROUNDS),
    "divergence_frozen": ("linear_divergence.py", *ROUNDS, "--frozen-head", "--variants", "ours", "naive"),
    "divergence_bf16": ("linear_divergence.py", *BF16, "--tokens", "64", "--rounds", "1"),
    "logps": ("linear_logps.py", *ROUNDS),
    "logps_frozen": ("linear_logps.py", *ROUNDS, "--frozen-head"),
    "logps_entropy": ("linear_logps.py", *ROUNDS, "--frozen-head", "--entropy"),
    "logps_bf16": ("linear_logps.py", *BF16, "--tokens", "64", "--rounds", "1"),
    "opsd_memory": ("opsd_memory.py",),
    "opsd_memory_bf16": ("opsd_memory.py", *BF16),
    "views": ("views.py", "--prompt", "24", "--completion", "48"),
    "shared_prefix": ("shared_prefix.py",),
    "last_position": ("last_position.py",),
    "recording": ("recording.py", "--rollouts", "16", "--steps", "9"),
}
"""Name -> script and arguments."""


def machine() -> str:
    where = measure.machine()
    return f"{where['cpu']}, {os.cpu_count()} cores, torch {where['torch']}"


def measured(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Run one script. Raises `subprocess.CalledProcessError` where it fails."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        script, *rest = arguments
        subprocess.run([sys.executable, str(HERE / script), *rest, "--json", str(out)], check=True, env=env)
        results = json.loads(out.read_text(), parse_constant=lambda _: None)
    return {"command": " ".join(arguments), "machine": where, "results": results}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    a = parser.parse_args(given)
    a.results.mkdir(parents=True, exist_ok=True)
    for name in a.only:
        out = a.results / f"{name}.json"
        if out.exists() and json.loads(out.read_text())["command"] == " ".join(PARTS[name]):
            print(f"{name}: there already")
            continue
        print(f"\n{name}: {' '.join(PARTS[name])}\n", flush=True)
        out.write_text(json.dumps(measured(PARTS[name]), indent=1) + "\n")


if __name__ == "__main__":
    main()
