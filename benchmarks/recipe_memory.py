"""The memory that the recipes need, computed from the published shapes of their models.

    python benchmarks/recipe_memory.py

It prints the figures in `recipes/README.md`. They are estimates, and from below: see `trl_selfdistill/cli/memory.py`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import trl_selfdistill
from trl_selfdistill.cli.arguments import Arguments, parse, read_command_line, read_recipe
from trl_selfdistill.cli.commands import ALGORITHMS
from trl_selfdistill.cli.memory import Memory, estimate_memory
from trl_selfdistill.ops.projection import chunk_rows

RECIPES = Path(__file__).parent.parent / "recipes"
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """The sizes in a model's `config.json`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    normed_heads: bool = True
    """Whether queries and keys are normed: in Qwen3 they are."""

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one layer: queries, keys, values, output; gate, up, down."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        wide = (self.hidden, self.intermediate)
        return [*attention, wide, wide, wide[::-1]]

    @property
    def linear_weights(self) -> int:
        return self.layers * sum(i * o for i, o in self.linear)

    @property
    def other_weights(self) -> int:
        """Embeddings, head and norms: never in 4 bits."""
        norms = 2 * self.hidden + 2 * self.head_dim * self.normed_heads
        return (1 if self.tied else 2) * self.vocab * self.hidden + self.layers * norms + self.hidden

    def adapter_weights(self, rank: int) -> int:
        """Of a LoRA on all linear layers."""
        return self.layers * rank * sum(i + o for i, o in self.linear)


SHAPES = {
    "smollm2": Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True, normed_heads=False),
    "qwen3-1.7b": Shape(28, 2048, 6144, 16, 8, 128, 151936, tied=True),
    "qwen3-4b-base": Shape(36, 2560, 9728, 32, 8, 128, 151936, tied=True),
    "qwen3-8b": Shape(36, 4096, 12288, 32, 8, 128, 151936, tied=False),
}


def recipe_memory(shape: Shape, arguments: Arguments, *, processes: int, device: str) -> Memory:
    """What `--dry-run` prints for a model of this shape: bytes of each of `processes` that share all weights.

    full fine-tuning   W = b (N + O), P = N + O                 b bytes of a weight, N weights of linear layers,
    LoRA               W = b (N + O) + 4 A, P = A               O all others, A of the adapter
    QLoRA              W = N / 2 + b (O + A), P = A             (the scales of the 4-bit blocks are left out)
    """
    model, training = arguments.model, arguments.training
    linear, other, size = shape.linear_weights, shape.other_weights, BYTES[str(model.dtype)]
    base = linear / 2 + size * other if model.load_in_4bit else size * (linear + other)
    trainable, dtype_bytes, weights = linear + other, size, base
    if model.use_peft:
        trainable, dtype_bytes = shape.adapter_weights(model.lora_r), size if model.load_in_4bit else 4
        weights = base + trainable * dtype_bytes
    own = {"live": 0.0, "base": 0.0 if model.use_peft else base, "ema": trainable * 4.0}
    return estimate_memory(
        weight_bytes=weights,
        trainable=trainable,
        dtype_bytes=dtype_bytes,
        optimizer=str(training.optim.value),
        vocab=shape.vocab,
        head_rows=chunk_rows(None, shape.vocab, torch.device(device)),
        teacher_bytes=own[training.teacher_model_kind],
        weight_shards=processes,
        state_shards=processes,
    )


def cache_bytes(shape: Shape, arguments: Arguments) -> float:
    """Keys and values of the rollouts that a process makes at a time, at their longest, prompts left out."""
    args = arguments.training
    rollouts = args.per_device_train_batch_size * args.steps_per_generation
    numbers = rollouts * args.max_completion_length * shape.layers * shape.kv_heads * shape.head_dim
    return 2.0 * numbers * BYTES[str(arguments.model.dtype)]


def algorithm_of(recipe: Path) -> str:
    """The command of a recipe: what its name begins with. The control is RLRT at strength 0."""
    name = recipe.stem.partition("_")[0]
    return "rlrt" if name == "grpo" else name


def read(recipe: Path, *flags: str) -> Arguments:
    """The settings of a recipe, with `flags` on top."""
    config_class = getattr(trl_selfdistill, ALGORITHMS[algorithm_of(recipe)]).config_class
    return parse(read_command_line(["--config", str(recipe), *flags], config_class), config_class)


def figures(recipe: Path) -> str:
    """The estimate and the cache of a recipe, as two cells of a table, in GiB."""
    model, on_cpu = recipe.parent.name, bool(read_recipe(str(recipe)).get("use_cpu"))
    arguments = read(recipe, *([] if on_cpu else ["--use_cpu", "true"]))
    processes = read_recipe(str(recipe)).get("num_processes", 1)
    memory = recipe_memory(SHAPES[model], arguments, processes=processes, device="cpu" if on_cpu else "cuda")
    return f"{memory.total / 2**30:.1f} | {cache_bytes(SHAPES[model], arguments) / 2**30:.1f}"


def main() -> None:
    for recipe in sorted(RECIPES.rglob("*.yaml")):
        print(f"{recipe.parent.name}/{recipe.name} | {figures(recipe)}")


if __name__ == "__main__":
    sys.exit(main())
