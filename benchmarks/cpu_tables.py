"""The figures of the benchmarks that run on a CPU, as they stand in the documentation."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import phase_tables
from scaling_tables import lessons, memory_table, seconds_table

RESULTS = Path(__file__).parent / "results"
MB = 1e6
README, PERFORMANCE = "benchmarks/README.md", "docs/performance.md"


def of_cpu(name: str) -> Any:
    """The results of a part of `cpu.py`."""
    return json.loads((RESULTS / f"cpu/{name}.json").read_text())["results"]


def machine_sentence() -> str:
    machines = {json.loads(path.read_text())["machine"] for path in (RESULTS / "cpu").glob("*.json")}
    return f"The CPU: {'; '.join(sorted(machines))}."


def of_phase(name: str) -> Any:
    return json.loads((RESULTS / f"training_phase_{name}.json").read_text())


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in [head, ["---"] * len(head), *rows])


def times(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else "-"


def op_rows(rows: list[dict[str, Any]], *errors: str) -> list[list[Any]]:
    """A line each variant: seconds, memory and both as ratios to ours."""
    lines = []
    for row in rows:
        ours = next(r for r in rows if r["variant"] == "ours" and r.get("beta") == row.get("beta"))
        took = [f"{row['seconds']:.3f}", times(row["seconds"], ours["seconds"]), f"{row['share']:.0%}"]
        held = [f"{row['bytes'] / MB:.0f}", times(row["bytes"], ours["bytes"])]
        found = ["-" if row[error] is None else f"{row[error]:.1e}" for error in errors]
        lines.append([*([row["beta"]] if "beta" in row else []), row["variant"], *took, *held, *found])
    return lines


OP = ("variant", "seconds", "ratio", "share", "peak growth, MB", "ratio")


def divergence_table(name: str) -> str:
    return table(["beta", *OP, "gradient error"], op_rows(of_cpu(name), "gradient_error"))


def logps_table(name: str) -> str:
    return table([*OP, "log-prob error", "gradient error"], op_rows(of_cpu(name), "logps_error", "gradient_error"))


def errors_in_bf16() -> dict[tuple[str, float], float]:
    return {(row["variant"], row["beta"]): row["gradient_error"] for row in of_cpu("divergence_bf16")}


def errors_table() -> str:
    errors = errors_in_bf16()
    variants = [v for v in dict.fromkeys(variant for variant, _ in errors) if v != "gemm"]
    rows = [[variant, *(f"{errors[variant, beta]:.1%}" for beta in (0.0, 0.5))] for variant in variants]
    return table(["variant", "gradient error, beta = 0", "beta = 0.5"], rows)


def errors_sentence() -> str:
    errors = errors_in_bf16()
    return (
        "Logits are float32 whatever the model's precision. Teacher and student nearly agree, so the gradient is a "
        "difference of\nnearly equal probabilities. At a hidden-state gap of 0.01, bfloat16 logits leave an error of "
        f"{errors['naive', 0.0]:.0%}; this op leaves {errors['ours', 0.0]:.1%}."
    )


def rounding_sentence() -> str:
    rows = {row["variant"]: row["logps_error"] for row in of_cpu("logps_bf16")}
    return (
        "TRL's head rounds the logits to the model's precision. In bfloat16 that alone puts a log-probability off by "
        f"{rows['trl']:.3f} nats in\nthe mean, where ours is off by {rows['ours']:.0e} (`benchmarks/linear_logps.py`, "
        "random states). The signal is a difference of two such numbers."
    )


def opsd_table() -> str:
    rows = []
    for dtype, name in (("float32", "opsd_memory"), ("bfloat16", "opsd_memory_bf16")):
        results = of_cpu(name)
        for variant, trainer in (("ours", "`OPSDTrainer`"), ("sdft", "`SDFTTrainer`")):
            row = results[variant]
            growth = f"{row['peak_mb']:.0f} | {times(row['peak_mb'], results['ours']['peak_mb'])}"
            rows.append([dtype, trainer, f"{row['loss']:.6f}", growth, f"{row['seconds']:.0f}"])
    return table(["dtype", "trainer", "loss", "peak growth, MB", "ratio", "CPU seconds"], rows)


VIEWS = {
    "rlrt": ("RLRT", 1),
    "rlcsd, 1 wrong peer": ("RLCSD, `rlcsd_wrong_peers=1`", 2),
    "rlcsd, 4 wrong peers": ("RLCSD, `rlcsd_wrong_peers=4`", "4 or 5"),
}


def views_table() -> str:
    took = of_cpu("views")
    rows = [[*VIEWS[name], f"{value:.2f}", times(value, took["rlrt"])] for name, value in took.items()]
    return table(["teacher of", "prompts per rollout", "seconds", "ratio"], rows)


def views_bullet() -> str:
    took = of_cpu("views")
    one, four = (times(took[f"rlcsd, {name}"], took["rlrt"]) for name in ("1 wrong peer", "4 wrong peers"))
    return (
        "- The teacher's time for a group of eight rollouts, against RLRT's, with shared prefixes "
        f"(`benchmarks/views.py`,\n  SmolLM2-135M's shape, CPU): {one} times with one wrong hint, {four} times "
        "with up to four."
    )


def shared_prefix_sentence() -> str:
    found = of_cpu("shared_prefix")
    share = times(found["seconds"]["once"], found["seconds"]["row by row"])
    return (
        f"On the CPU, with a teacher's prompt of {found['prompt']:,} tokens, {found['completion']} completion tokens "
        f"and {found['rollouts']} rollouts, scoring takes {share}\nof the time that it takes row by row; the "
        f"log-probabilities differ by {found['difference']:.0e} at most (`benchmarks/shared_prefix.py`)."
    )


def recording_table() -> str:
    found = of_cpu("recording")
    cpu, wall = found["CPU"], found["wall"]
    own = f"{found['own'] * 1e3:.1f} ms of CPU time a step: {found['own'] / cpu['without']:.2%} of a step without"
    rows = [["the recording itself (choice, text, gathering, Parquet file, metrics)", own]]
    for name, taken in (("CPU time of a step", cpu), ("wall time of a step", wall)):
        ratio = taken["with"] / taken["without"]
        rows.append([name, f"{taken['without']:.2f} s without, {taken['with']:.2f} s with: ratio {ratio:.3f}"])
    return table(["", "value"], rows)


def recording_sentence() -> str:
    found = of_cpu("recording")
    return (
        f"`log_token_signals` writes a file at each logging step. With the default of {found['count']} completions "
        f"that is {found['own'] * 1e3:.0f} ms of CPU time,\n{found['own'] / found['CPU']['without']:.2%} of a step of "
        "SmolLM2-135M on a CPU (`benchmarks/recording.py`)."
    )


def last_position_table() -> str:
    rows = [
        [dtype, *(f"{took[kind]:.2f}" for kind in ("slice", "contiguous"))]
        for dtype, took in of_cpu("last_position").items()
    ]
    return table(["dtype", "a slice, seconds", "contiguous, seconds"], rows)


def blocks() -> dict[str, dict[str, str]]:
    """Page -> mark -> what stands there."""
    lora = of_phase("lora")
    growth = {f"growth {axis}": phase_tables.growth_table(rows) for axis, rows in lora["growth"].items()}
    return {
        README: {
            "machine": machine_sentence(),
            "divergence": divergence_table("divergence"),
            "divergence frozen": divergence_table("divergence_frozen"),
            "divergence bf16": errors_table(),
            "logps": logps_table("logps"),
            "logps frozen": logps_table("logps_frozen"),
            "logps entropy": logps_table("logps_entropy"),
            "opsd memory": opsd_table(),
            "views": views_table(),
            "recording": recording_table(),
            "last position": last_position_table(),
        },
        PERFORMANCE: {
            "shared prefix": shared_prefix_sentence(),
            "rounding": rounding_sentence(),
            "phase": phase_tables.summary_tables(of_phase("cpu")),
            "rounds": phase_tables.rounds_table(lora),
            "spread": phase_tables.spread_sentence(lora),
            "third": phase_tables.third_sentence(of_phase("third")),
            **growth,
            "recording": recording_sentence(),
        },
        "docs/ops.md": {"bf16": errors_sentence()},
        "docs/rlcsd.md": {"views": views_bullet()},
        "docs/scaling.md": {"lessons": lessons(), "steps": seconds_table(), "memory": memory_table()},
    }
