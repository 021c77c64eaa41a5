"""How much memory a run needs, estimated before it starts."""

from dataclasses import dataclass

STATES_PER_WEIGHT = {"adafactor": 0.0, "adagrad": 1.0, "adam": 2.0, "lion": 1.0, "rmsprop": 1.0, "sgd": 0.0}
"""Numbers that an optimiser keeps for each trainable weight. Adafactor keeps rows and columns: next to nothing."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    head: float
    teacher: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.head + self.teacher


def estimate_memory(
    *,
    weight_bytes: float,
    trainable: int,
    dtype_bytes: int,
    optimizer: str,
    vocab: int,
    head_rows: int,
    teacher_bytes: float = 0.0,
    weight_shards: int = 1,
    state_shards: int = 1,
) -> Memory:
    r"""The memory of one process, in bytes.

        weights    W / weight_shards
        gradients  P d / state_shards
        optimiser  P s / state_shards
        head       10 V R           two float32 rows of logits and one bfloat16 gradient for each of R tokens
        teacher    T / weight_shards

    Left out: activations (with gradient checkpointing, about layers x tokens x width x 2 bytes for the longest
    micro-batch), the cache of generation, vLLM, and what the allocator wastes. It is a lower bound.

    Args:
        weight_bytes: W, all weights as they are stored, quantized or not.
        trainable: P, weights that are trained.
        dtype_bytes: d, bytes of a trainable weight and of its gradient.
        optimizer: name as in `optim`: "adamw_torch", "adamw_8bit", "sgd", ... A state takes one byte with 8 bits,
            half of one with 4, else d: torch keeps the states in the type of the weights.
        vocab: V, entries of the vocabulary.
        head_rows: R, tokens whose logits exist at a time: the fused op's chunk.
        teacher_bytes: T, weights that the teacher has of its own.
        weight_shards: processes that share the weights (FSDP2, ZeRO-3).
        state_shards: processes that share gradients and optimiser (these, and ZeRO-2).

    Raises `ValueError` for an optimiser that is not known.
    """
    kind = next((name for name in STATES_PER_WEIGHT if name in optimizer), None)
    if kind is None:
        raise ValueError(f"optimizer={optimizer!r}: its states are not known. Known: {sorted(STATES_PER_WEIGHT)}.")
    small = {"8bit": 1.0, "4bit": 0.5}
    bytes_per_state = next((size for bits, size in small.items() if bits in optimizer), float(dtype_bytes))
    state_bytes = STATES_PER_WEIGHT[kind] * bytes_per_state
    return Memory(
        weights=weight_bytes / weight_shards,
        gradients=trainable * dtype_bytes / state_shards,
        optimizer=trainable * state_bytes / state_shards,
        head=10.0 * vocab * head_rows,
        teacher=teacher_bytes / weight_shards,
    )
