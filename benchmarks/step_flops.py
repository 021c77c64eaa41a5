"""Floating point operations that one training step needs, by counting: what a time can be compared with."""

from dataclasses import dataclass


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


def step_flops(
    sizes: Sizes, shape: Shape, *, lora: bool, teacher: bool, checkpointing: bool, shared_teacher: bool = False
) -> int:
    """One training step: the student's forward and backward and, with `teacher`, the teacher's forward.

    The backward of a product costs two of its size: one for the input's gradient, one for the weight's. LoRA leaves out
    the second for frozen weights, the head's too, and not for its own. Attention has no weights: always two. Gradient
    checkpointing runs the layers' forward once more. The optimiser's arithmetic counts nothing: it multiplies no
    matrices. Every rollout has a teacher, who is scored once; all tokens of a completion are real.
    """
    rows = shape.rollouts
    layers, head = completion_forward(sizes, shape, shape.prompt, adapter=lora, shared=False, rollouts=rows)
    total = layers + head + (layers if checkpointing else 0) + 2 * (layers + head)
    if lora:
        frozen = 2 * sizes.body * rows * (shape.prompt + shape.completion)
        total -= frozen + head
    if teacher:
        # The base model may score without its adapter; the difference is a few per cent, and left out.
        prompt = shape.prompt + shape.context
        total += sum(completion_forward(sizes, shape, prompt, adapter=lora, shared=shared_teacher, rollouts=rows))
    return total
