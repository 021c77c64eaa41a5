"""The planner's counts beside what was measured, as they stand in docs/scaling.md."""

import json
import statistics
from pathlib import Path
from typing import Any

from trl_selfdistill.cli import plan
from trl_selfdistill.cli.flops import Shape, predicted_flops
from trl_selfdistill.cli.memory import estimate_memory
from trl_selfdistill.cli.plan_costs import training_bytes
from trl_selfdistill.cli.plan_tables import find_decoder

RESULTS = Path(__file__).parent / "results"
DECODER = find_decoder("smollm2-135m", rank=16)
CHUNK, WIDTH, VOCAB, OPSD_TOKENS = 256, 576, 49152, 64 + 2048
"""Rows of a chunk on a CPU; the head of SmolLM2-135M; prompt and completion of OPSD's step."""

Case = tuple[str, bool]
"""The algorithm, and whether it trains LoRA."""


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def measured_seconds() -> dict[Case, tuple[Shape, float]]:
    """CPU seconds of a step on one thread in float32."""
    found = {}
    for entry in read("training_phase_cpu")["comparison"]:
        for name in ("grpo", "rlrt"):
            seconds = statistics.median(entry["variants"][name]["seconds"])
            found[name, entry["kind"] == "lora"] = (Shape(**entry["shape"]), seconds)
    opsd = read("cpu/opsd_memory")["results"]["ours"]["seconds"]
    return {**found, ("opsd", True): (Shape(64, 448, 2048, 1), opsd)}


def operations(case: Case, shape: Shape) -> float:
    """There is no Triton on a CPU."""
    algorithm, lora = case
    return predicted_flops(DECODER.sizes, shape, algorithm, lora=lora, triton=False)


def rates() -> dict[Case, float]:
    """Operations per second of each measured step."""
    return {case: operations(case, shape) / seconds for case, (shape, seconds) in measured_seconds().items()}


def seconds_table() -> str:
    """What was measured, what is counted, and the seconds that the mean of all rates makes of that."""
    middle = statistics.geometric_mean(rates().values())
    lines = [
        f"| step | measured, s | counted, 10¹² operations | at {middle / 1e9:.1f}·10⁹ per second, s |",
        "|---|---|---|---|",
    ]
    names = {"grpo": "GRPO", "rlrt": "RLRT", "opsd": "OPSD"}
    for case, (shape, seconds) in measured_seconds().items():
        count = operations(case, shape)
        kind = "LoRA" if case[1] else "full"
        lines.append(f"| {names[case[0]]}, {kind} | {seconds:.1f} | {count / 1e12:.2f} | {count / middle:.1f} |")
    return "\n".join(lines)


def memories() -> dict[str, tuple[float, float]]:
    """What -> bytes that were measured, and that the planner predicts."""
    numbers: dict[str, Any] = {"weight_bytes": 0.0, "dtype_bytes": 4, "optimizer": "sgd", "vocab": VOCAB}
    head = estimate_memory(trainable=0, head_rows=CHUNK, **numbers).head
    trained = estimate_memory(trainable=WIDTH * VOCAB, head_rows=CHUNK, **numbers).total
    cast_up = 4 * WIDTH * VOCAB  # a CPU has no bfloat16 product with a float32 result: it casts the head up
    op = {name: read(f"cpu/{name}")["results"][0]["bytes"] for name in ("divergence_frozen", "divergence")}
    opsd = {n: read(f"cpu/{n}")["results"]["ours"]["peak_mb"] * 1e6 for n in ("opsd_memory", "opsd_memory_bf16")}
    return {
        "the op, frozen head, 1,024 tokens": (op["divergence_frozen"], head),
        "the op, trained head, 1,024 tokens": (op["divergence"], trained),
        "OPSD's step, LoRA, float32": (opsd["opsd_memory"], training_bytes(DECODER, OPSD_TOKENS, 4, head)),
        "OPSD's step, LoRA, bfloat16": (
            opsd["opsd_memory_bf16"],
            training_bytes(DECODER, OPSD_TOKENS, 2, head + cast_up),
        ),
    }


def memory_table() -> str:
    lines = ["| memory | measured, MB | predicted, MB |", "|---|---|---|"]
    lines += [f"| {what} | {took / 1e6:.0f} | {told / 1e6:.0f} |" for what, (took, told) in memories().items()]
    return "\n".join(lines)


def planned(command: str) -> dict[tuple[str, str], Any]:
    """(method, configuration) -> the seconds that the planner gives."""
    job = plan.read_job(plan.parser().parse_args(command.split()))
    return {(found.setup.method, found.setup.name): found.seconds for found in plan.plans(job)}


def head_share(seconds: Any) -> float:
    """Of what is not generation."""
    return seconds.head / (seconds.total - seconds.generation)


def lessons() -> str:
    """What the answers of the planner have in common."""
    node, small = planned("--model 8b --gpus 8"), planned("--model 0.6b")
    slow = [node[method, "fsdp2"] for method in ("lora", "full")]
    times = min(seconds.generation / (seconds.total - seconds.generation) for seconds in slow)
    best = [node["full", "zero2"], node["lora", "multi_gpu"]]
    low, high = sorted(seconds.teacher / seconds.student for seconds in best)
    shares = head_share(node["full", "zero2"]), head_share(small["full", "one process"])
    lines = (
        "- **Generation dominates** in all rows but the last, and with `fsdp2` and without vLLM it is more than",
        f"  {int(times)} times the rest, because the weights travel for every token. Take FSDP2 with vLLM, or whole",
        "  weights on each GPU.",
        f"- **The teacher adds {low:.0%} to {high:.0%} of the student's time**: its prompt is read once per group, if",
        "  a forward holds whole groups (`per_device_train_batch_size` a multiple of `num_generations`).",
        f"- **The head is not the problem of large models**: at 8 billion weights it is {shares[0]:.0%} of what is not",
        f"  generation, at 0.6 billion {shares[1]:.0%}. It takes 1.5 GiB at most.",
    )
    return "\n".join(lines)
