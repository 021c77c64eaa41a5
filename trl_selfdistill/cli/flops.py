"""Floating point operations of a training step, by counting matrix products. The benchmarks and the planner use it.

What multiplies no matrices counts nothing: norms, softmax, sampling, the optimiser.
"""

from dataclasses import dataclass

UNTAUGHT = ("grpo", "opsa")
"""Algorithms that ask no teacher."""


@dataclass(frozen=True)
class Shape:
    """One training step: G rollouts of one prompt of P tokens, T tokens each; the teacher's context has C tokens."""

    prompt: int
    context: int
    completion: int
    rollouts: int = 8


@dataclass(frozen=True)
class Sizes:
    """A decoder's numbers: weights in its layers' products, adapter weights, and the sizes of attention and head."""

    body: int
    adapter: int
    layers: int
    attention: int
    """Heads times head dimension."""
    hidden: int
    vocab: int


def forward_flops(sizes: Sizes, tokens: int, pairs: int, *, adapter: bool) -> int:
    """One forward of the layers, without the head.

    2 N per token for N weights (and the adapter's), and per layer 4 A for each pair of a token and one that it attends
    to: 2 A for the score, 2 A for the sum, A = heads times head dimension. Embeddings, norms and softmax count nothing.
    """
    weights = sizes.body + (sizes.adapter if adapter else 0)
    return 2 * weights * tokens + 4 * sizes.layers * sizes.attention * pairs


def causal_pairs(new: int, seen: int = 0) -> int:
    """Pairs (token, token that it attends to) of `new` tokens that follow `seen` ones."""
    return new * seen + new * (new + 1) // 2


def completion_forward(
    sizes: Sizes, shape: Shape, prompt: int, *, adapter: bool, shared: bool, rollouts: int
) -> tuple[int, int]:
    """(layers, head) of a forward that predicts `rollouts` completions of T tokens after one prompt of `prompt` tokens.

    With `shared`, the prompt goes through the layers once, else once per rollout. Head: 2 G T H V, one product.
    """
    rows, length = rollouts, shape.completion
    encoded = 1 if shared else rows
    layers = forward_flops(sizes, encoded * prompt, encoded * causal_pairs(prompt), adapter=adapter)
    layers += forward_flops(sizes, rows * length, rows * causal_pairs(length, prompt), adapter=adapter)
    return layers, 2 * rows * length * sizes.hidden * sizes.vocab


def student_flops(sizes: Sizes, shape: Shape, *, lora: bool, checkpointing: bool) -> int:
    """The layers' part of the student's forward and backward.

    The backward of a product costs two of its size: one for the input's gradient, one for the weight's. LoRA leaves out
    the second for frozen weights, and not for its own. Attention has no weights: always two. Gradient checkpointing
    runs the forward once more. All tokens of a completion are real.
    """
    rows = shape.rollouts
    layers, _ = completion_forward(sizes, shape, shape.prompt, adapter=lora, shared=False, rollouts=rows)
    frozen = 2 * sizes.body * rows * (shape.prompt + shape.completion) if lora else 0
    return (4 if checkpointing else 3) * layers - frozen


def teacher_flops(sizes: Sizes, shape: Shape, *, lora: bool, shared: bool) -> tuple[int, int]:
    """(layers, head) of the teacher's one forward. Every rollout has a teacher, who is scored once.

    The base model may score without its adapter; the difference is a few per cent, and left out.
    """
    prompt = shape.prompt + shape.context
    return completion_forward(sizes, shape, prompt, adapter=lora, shared=shared, rollouts=shape.rollouts)


def head_products(algorithm: str, *, lora: bool) -> int:
    """Products of the head that a training step makes for each token it scores, the teacher's among them.

    With a frozen head (LoRA) `linear_logps` makes the gradient in the forward pass: 2. With a trained one it computes
    the logits again in the backward pass: 4. That is all of OPSA's. RLRT and AntiSD add the teacher's one. OPSD's
    divergence makes both sides and all gradients from one computation: 3 and 4. TRL's head always computes the logits
    again: 3 and 4.
    """
    table = {"grpo": (3, 4), "rlrt": (3, 5), "antisd": (3, 5), "opsd": (3, 4), "opsa": (2, 4)}
    if algorithm not in table:
        raise ValueError(f"algorithm={algorithm!r}: its head is not known. Known: {sorted(table)}.")
    return table[algorithm][0 if lora else 1]


def head_tokens(algorithm: str, shape: Shape, *, triton: bool) -> int:
    """Tokens that the head scores: those of the completions. Without Triton, TRL's head scores the prompt's too."""
    length = shape.completion if triton or algorithm != "grpo" else shape.prompt + shape.completion - 1
    return shape.rollouts * length


def head_flops(sizes: Sizes, algorithm: str, shape: Shape, *, lora: bool, triton: bool) -> int:
    """All products of the head in a training step: 2 H V for each product and token."""
    tokens = head_tokens(algorithm, shape, triton=triton)
    return 2 * head_products(algorithm, lora=lora) * tokens * sizes.hidden * sizes.vocab


def step_flops(
    sizes: Sizes, shape: Shape, *, lora: bool, teacher: bool, checkpointing: bool, shared_teacher: bool = False
) -> int:
    """One training step with no product twice but for checkpointing: the least that plain autograd needs.

    The head: 2 products with a frozen head, 3 with a trained one, and the teacher's.
    """
    total = student_flops(sizes, shape, lora=lora, checkpointing=checkpointing)
    total += 2 * (2 if lora else 3) * shape.rollouts * shape.completion * sizes.hidden * sizes.vocab
    return total + (sum(teacher_flops(sizes, shape, lora=lora, shared=shared_teacher)) if teacher else 0)


def predicted_flops(
    sizes: Sizes, shape: Shape, algorithm: str, *, lora: bool, checkpointing: bool = True, triton: bool = True
) -> int:
    """One training step as the trainer does it, without generation. `algorithm`: "grpo" is TRL's own trainer."""
    total = student_flops(sizes, shape, lora=lora, checkpointing=checkpointing)
    total += head_flops(sizes, algorithm, shape, lora=lora, triton=triton)
    return total + (0 if algorithm in UNTAUGHT else teacher_flops(sizes, shape, lora=lora, shared=True)[0])
