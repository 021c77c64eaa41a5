"""`--dry-run`: the trainer is made, nothing is trained, and what would happen is printed."""

import textwrap
from dataclasses import fields
from typing import Any

from accelerate.utils import DistributedType
from datasets import Dataset
from torch import nn

from trl_selfdistill.cli.arguments import Arguments
from trl_selfdistill.cli.memory import Memory, estimate_memory
from trl_selfdistill.ops.projection import chunk_rows
from trl_selfdistill.settings import default_of
from trl_selfdistill.teachers.base import FrozenCopyTeacher
from trl_selfdistill.teachers.ema import EMATeacher
from trl_selfdistill.trainer.example import example_prompts

WIDTH = 110


def show(trainer: Any, arguments: Arguments) -> None:
    """Print settings, data, steps, memory and the first teacher prompt, on the main process."""
    parts = [*settings(arguments), *amounts(trainer), *memory_lines(trainer), *prompt_lines(trainer)]
    trainer.accelerator.print("\n".join(parts))


def settings(arguments: Arguments) -> list[str]:
    """All settings, first those that are not at their defaults."""
    other, default = [], []
    for part in (arguments.run, arguments.model, arguments.mixture, arguments.training):
        for f in fields(part):
            value = getattr(part, f.name)
            (default if value == default_of(f) else other).append((f.name, value))
    rest = ", ".join(f"{name}={value!r}" for name, value in default)
    return [
        "== Settings that differ from the defaults",
        *(f"{name}: {value}" for name, value in other),
        "\n== Settings at their defaults",
        textwrap.fill(rest, WIDTH, break_long_words=False, break_on_hyphens=False),
    ]


def amounts(trainer: Any) -> list[str]:
    """Rows, rollouts and steps."""
    args, processes = trainer.args, trainer.accelerator.num_processes
    dataset = trainer.train_dataset
    rows = str(len(dataset)) if isinstance(dataset, Dataset) else "not known (a stream)"
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    batch = args.generation_batch_size
    return [
        "\n== Amounts",
        f"processes: {processes} ({trainer.accelerator.distributed_type.value})",
        f"training rows: {rows}",
        f"optimiser steps: {steps}",
        f"a batch of rollouts: {batch // trainer.num_generations} prompts x {trainer.num_generations} = {batch}, "
        f"used for {max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)} "
        "optimiser steps",
    ]


def memory_lines(trainer: Any) -> list[str]:
    """The estimate of memory by what it is for."""
    title = "\n== Memory of each process: an estimate from below, without activations and generation"
    try:
        memory = run_memory(trainer)
    except ValueError as error:
        return [title, f"not estimated: {error}"]
    names = ("weights", "gradients", "optimizer", "teacher", "head", "total")
    return [title, *(f"{name:10} {getattr(memory, name) / 2**30:8.2f} GiB" for name in names)]


def run_memory(trainer: Any) -> Memory:
    """The estimate for a trainer whose model is not wrapped yet. Raises `ValueError` as `estimate_memory` does."""
    model, teacher = trainer.model, trainer.teacher
    trained = [p for p in model.parameters() if p.requires_grad]
    vocab, device = model.get_output_embeddings().weight.shape[0], trainer.accelerator.device
    own = 0
    if isinstance(teacher, FrozenCopyTeacher):
        own = weight_bytes(teacher.model)
    elif isinstance(teacher, EMATeacher):
        own = sum(t.numel() * t.element_size() for t in teacher.shadow.values())
    weight_shards, state_shards = shards(trainer.accelerator)
    return estimate_memory(
        weight_bytes=weight_bytes(model),
        trainable=sum(size(p) for p in trained),
        dtype_bytes=trained[0].element_size(),
        optimizer=str(trainer.args.optim.value),
        vocab=vocab,
        head_rows=chunk_rows(None, vocab, device),
        teacher_bytes=own,
        weight_shards=weight_shards,
        state_shards=state_shards,
    )


def size(parameter: Any) -> int:
    """Numbers in a parameter. DeepSpeed has partitioned those of ZeRO-3 by now, and keeps their size."""
    return getattr(parameter, "ds_numel", parameter.numel())


def weight_bytes(model: nn.Module) -> int:
    return sum(size(p) * p.element_size() for p in model.parameters())


def shards(accelerator: Any) -> tuple[int, int]:
    """(processes that share the weights, processes that share gradients and optimiser)."""
    n = accelerator.num_processes
    if accelerator.distributed_type == DistributedType.FSDP:
        return n, n
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        return (n if stage == 3 else 1), (n if stage >= 2 else 1)
    return 1, 1


def prompt_lines(trainer: Any) -> list[str]:
    """The teacher's first prompt, as the model reads it."""
    if not trainer.views:
        return ["\n== First prompt of the teacher", f"none: {type(trainer).__name__} asks no teacher"]
    lines = []
    for view, text in example_prompts(trainer).items():
        lines += [f"\n== First prompt of the teacher (view {view!r}), between the lines", "---", text, "---"]
    return lines or ["\n== First prompt of the teacher", "none: the first row has no context for a teacher"]
