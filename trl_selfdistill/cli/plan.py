"""`trl-selfdistill plan --model 8b --gpus 8`: where memory and time go, and which configuration to take. On paper."""

import argparse
from dataclasses import dataclass, fields, replace

from trl_selfdistill.cli.errors import as_user_errors, guarded
from trl_selfdistill.cli.flops import Shape
from trl_selfdistill.cli.plan_costs import Bytes, Job, Seconds, Setup, memory, seconds
from trl_selfdistill.cli.plan_tables import GIB, GPUS, MODELS, find_decoder

USABLE = 0.9
"""The share of a GPU's memory that a plan may fill: the rest is the allocator's, the driver's and NCCL's."""
ONE = (Setup("one process", "full"), Setup("one process", "lora"), Setup("single_gpu_qlora", "qlora"))
SEVERAL = (
    Setup("multi_gpu", "full"),
    Setup("zero2", "full", states_shared=True, halved=True),
    Setup("fsdp2", "full", weights_shared=True, states_shared=True),
    Setup("multi_gpu", "lora"),
    Setup("fsdp2", "lora", weights_shared=True, states_shared=True),
    Setup("fsdp2_qlora", "qlora", weights_shared=True, states_shared=True),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run a job, with the fastest batches that fit, or with the smallest where none do."""

    setup: Setup
    micro: int
    generated: int
    bytes: Bytes
    seconds: Seconds
    fits: bool
    refused: str = ""
    """Why it cannot run, whatever its size."""

    @property
    def dominates(self) -> str:
        return max((f.name for f in fields(Seconds)), key=lambda name: getattr(self.seconds, name))


def plan_setup(job: Job, setup: Setup) -> Plan:
    """The plan with the fastest batches that fit. Where several are as fast, that with the least memory."""
    refused = "trl#5975" if setup.name == "fsdp2_qlora" and job.vllm else ""
    tried = []
    for micro, generated in batches(job):
        sized = replace(job, micro=micro, generated=generated)
        needed = memory(sized, setup)
        fits = needed.peak <= USABLE * job.gpu.memory and not refused
        tried.append(Plan(setup, micro, generated, needed, seconds(sized, setup), fits, refused))
    fitting = [plan for plan in tried if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: (plan.seconds.total, plan.bytes.peak))
    return min(tried, key=lambda plan: plan.bytes.peak)


def batches(job: Job) -> list[tuple[int, int]]:
    """(rollouts per forward, rollouts generated at once) of a GPU that TRL takes: whole groups are generated."""
    sizes = [size for size in range(1, job.rows + 1) if job.rows % size == 0]
    whole = [size for size in sizes if size * job.gpus % job.shape.rollouts == 0]
    return [(micro, generated) for micro in sizes for generated in whole if generated % micro == 0]


def plans(job: Job) -> list[Plan]:
    """A plan for every setup that the number of GPUs allows."""
    return [plan_setup(job, setup) for setup in (SEVERAL if job.gpus > 1 else ONE)]


def choices(found: list[Plan]) -> dict[str, Plan]:
    """The fastest plan that fits, by method."""
    best: dict[str, Plan] = {}
    for plan in sorted((p for p in found if p.fits), key=lambda p: p.seconds.total):
        best.setdefault(plan.setup.method, plan)
    return best


def table(found: list[Plan]) -> list[str]:
    """A line per plan: bytes by what they are for, and seconds by what they are spent on."""
    head = f"{'method':6} {'configuration':16} {'batch':>5} {'gen.':>5} "
    head += f"{'GiB':>6} {'states':>6} {'train':>6} {'gener.':>6}"
    lines = [f"{head} | {'s/step':>8} {'gener.':>8} {'student':>8} {'teacher':>8} {'head':>8} {'commun.':>8}"]
    for plan in found:
        kept = plan.bytes.states.total - plan.bytes.states.head
        sizes = (plan.bytes.peak, kept, plan.bytes.training, plan.bytes.generation)
        times = (plan.seconds.total, *(getattr(plan.seconds, f.name) for f in fields(Seconds)))
        fit = "" if plan.fits else f"  refused: {plan.refused}" if plan.refused else "  does not fit"
        lines.append(
            f"{plan.setup.method:6} {plan.setup.name:16} {plan.micro:5} {plan.generated:5} "
            + " ".join(f"{size / GIB:6.1f}" for size in sizes)
            + " | "
            + " ".join(f"{time:8.2f}" for time in times)
            + fit
        )
    return lines


def advice(job: Job, found: list[Plan]) -> list[str]:
    """Which configuration to take, what dominates, and what is known to go wrong with it."""
    best = choices(found)
    if not best:
        return ["Nothing fits: more GPUs, fewer or shorter rollouts, a smaller model, or --vllm with more GPUs."]
    lines = [
        f"{method}: take {plan.setup.name}, per_device_train_batch_size={plan.micro}, "
        f"gradient_accumulation_steps={job.rows // plan.micro}, "
        f"steps_per_generation={plan.generated // plan.micro}; most of the time: {plan.dominates}."
        for method, plan in best.items()
    ]
    if job.vllm and any(plan.setup.weights_shared for plan in best.values()):
        lines.append("FSDP2 with a vLLM server: sending the weights has hung (trl#7131). Take vllm_mode='colocate'.")
    return lines


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="trl-selfdistill plan", description=__doc__, allow_abbrev=False)
    made.add_argument("--model", required=True, help=f"{', '.join(MODELS)}, or a folder with a config.json")
    made.add_argument("--gpus", type=int, default=1)
    made.add_argument("--gpu", choices=tuple(GPUS), default="h100")
    made.add_argument("--gpu-memory", type=float, metavar="GIB", help="usable memory, in place of that GPU's")
    made.add_argument("--algorithm", choices=("rlrt", "antisd", "opsd", "opsa", "grpo"), default="rlrt")
    made.add_argument("--prompts", type=int, help="per optimiser step (default: 16, or one per GPU)")
    made.add_argument("--generations", type=int, default=8, help="rollouts per prompt")
    made.add_argument("--prompt-tokens", type=int, default=256)
    made.add_argument("--context-tokens", type=int, default=1024, help="what the teacher sees beside the prompt")
    made.add_argument("--completion-tokens", type=int, default=2048)
    made.add_argument("--lora-rank", type=int, default=32)
    made.add_argument("--vllm", type=int, default=0, metavar="N", help="vLLM, N GPUs to a copy of the weights")
    made.add_argument("--utilisation", type=float, default=0.4, help="share of the peak of arithmetic that is reached")
    return made


def read_job(a: argparse.Namespace) -> Job:
    """The job of a command line. Raises `ValueError` for numbers that cannot be."""
    numbers = ("gpus", "generations", "prompt_tokens", "completion_tokens", "lora_rank")
    for name in numbers:
        if getattr(a, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(a, name)}.")
    if not 0 < a.utilisation <= 1:
        raise ValueError(f"--utilisation must be above 0 and at most 1, not {a.utilisation}.")
    if a.context_tokens < 0:
        raise ValueError(f"--context-tokens must be at least 0, not {a.context_tokens}.")
    if a.vllm < 0 or (a.vllm and a.gpus % a.vllm):
        raise ValueError(f"--vllm {a.vllm} must divide --gpus {a.gpus}, or be 0 for Transformers' generation.")
    rollouts = a.generations * (max(16, a.gpus) if a.prompts is None else a.prompts)
    if rollouts < 1 or rollouts % a.gpus:
        raise ValueError(f"{rollouts} rollouts cannot be divided by {a.gpus} GPUs: change --prompts or --generations.")
    gpu = GPUS[a.gpu] if a.gpu_memory is None else replace(GPUS[a.gpu], memory=a.gpu_memory * GIB)
    shape = Shape(a.prompt_tokens, a.context_tokens, a.completion_tokens, a.generations)
    model, rows = find_decoder(a.model, a.lora_rank), rollouts // a.gpus
    return Job(model, gpu, a.gpus, a.algorithm, shape, rows, rows, rows, a.vllm, a.utilisation)


def run(argv: list[str] | None) -> int:
    a = parser().parse_args(argv)
    with as_user_errors():
        job = read_job(a)
    found = plans(job)
    print(
        f"{a.algorithm}, {a.model} ({job.model.weights / 1e9:.2f} billion weights), {job.gpus} x {a.gpu} with "
        f"{job.gpu.memory / GIB:.0f} GiB; per step and GPU {job.rows} rollouts of {job.shape.completion} tokens"
    )
    print(f"On paper: {job.compute_share:.0%} of the peak of arithmetic, {job.memory_share:.0%} of memory traffic.\n")
    print("\n".join([*table(found), "", *advice(job, found)]))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Print the plan for a command line. The exit status."""
    return guarded(lambda: run(argv))


if __name__ == "__main__":
    raise SystemExit(main())
