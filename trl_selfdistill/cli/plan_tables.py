"""What the planner knows of models and GPUs."""

from dataclasses import dataclass, replace

from trl_selfdistill.cli.flops import Sizes

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Decoder:
    """A dense decoder: its numbers for counting, and what only memory needs."""

    sizes: Sizes
    keys: int
    """Key-value heads times their dimension: numbers in a token's keys, and in its values, in each layer."""
    inner: int
    """Width of the gated product between attention layers."""
    tied: bool
    """The head's weights are the embedding's."""

    @property
    def weights(self) -> int:
        return self.sizes.body + (1 if self.tied else 2) * self.sizes.hidden * self.sizes.vocab


def decoder(
    layers: int, hidden: int, inner: int, heads: int, key_heads: int, head_size: int, vocab: int, *, tied: bool
) -> Decoder:
    """A decoder of the usual kind: four products around attention, three in a gated product. The adapter has rank 1."""
    attention, keys = heads * head_size, key_heads * head_size
    products = [(hidden, attention), (hidden, keys), (hidden, keys), (attention, hidden)]
    products += [(hidden, inner), (hidden, inner), (inner, hidden)]
    sizes = Sizes(
        body=layers * sum(a * b for a, b in products),
        adapter=layers * sum(a + b for a, b in products),
        layers=layers,
        attention=attention,
        hidden=hidden,
        vocab=vocab,
    )
    return Decoder(sizes, keys, inner, tied)


QWEN3_VOCAB = 151936
MODELS = {
    "smollm2-135m": decoder(30, 576, 1536, 9, 3, 64, 49152, tied=True),
    "0.6b": decoder(28, 1024, 3072, 16, 8, 128, QWEN3_VOCAB, tied=True),
    "1.7b": decoder(28, 2048, 6144, 16, 8, 128, QWEN3_VOCAB, tied=True),
    "4b": decoder(36, 2560, 9728, 32, 8, 128, QWEN3_VOCAB, tied=True),
    "8b": decoder(36, 4096, 12288, 32, 8, 128, QWEN3_VOCAB, tied=False),
    "14b": decoder(40, 5120, 17408, 40, 8, 128, QWEN3_VOCAB, tied=False),
    "32b": decoder(64, 5120, 25600, 64, 8, 128, QWEN3_VOCAB, tied=False),
}
"""SmolLM2-135M and the dense models of Qwen3, by size."""


def find_decoder(name: str, rank: int) -> Decoder:
    """The model `name` of the table, or of a folder with a `config.json`, with adapters of that rank.

    Raises `ValueError` for a name that is neither, and for a model with experts.
    """
    found = MODELS.get(name.lower()) or read_decoder(name)
    return replace(found, sizes=replace(found.sizes, adapter=rank * found.sizes.adapter))


def read_decoder(folder: str) -> Decoder:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model {folder!r} is neither one of {', '.join(MODELS)} nor a folder with a config.json."
        ) from error
    if any("expert" in key and value for key, value in config.items()):
        raise ValueError(f"--model {folder}: a model with experts. The planner counts dense decoders only.")
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if missing := [key for key in needed if not isinstance(config.get(key), int)]:
        raise ValueError(f"--model {folder}: config.json has no number for {missing}. Name a model of the table.")
    layers, hidden, inner, heads, vocab = (config[key] for key in needed)
    key_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or hidden // heads
    tied = bool(config.get("tie_word_embeddings"))
    return decoder(layers, hidden, inner, heads, key_heads, head_size, vocab, tied=tied)


@dataclass(frozen=True, slots=True)
class GPU:
    """One GPU: bytes, dense 16-bit operations per second, and bytes per second to its memory, to GPUs of its node, and
    to other nodes."""

    memory: float
    flops: float
    bandwidth: float
    link: float
    network: float


GPUS = {
    "t4": GPU(14.6 * GIB, 65e12, 320e9, 16e9, 3e9),
    "l4": GPU(22 * GIB, 121e12, 300e9, 32e9, 3e9),
    "a100": GPU(79 * GIB, 312e12, 2039e9, 300e9, 25e9),
    "h100": GPU(78 * GIB, 989e12, 3350e9, 450e9, 50e9),
    "h200": GPU(139 * GIB, 989e12, 4800e9, 450e9, 50e9),
}
"""Peaks of the data sheets, in one direction; `network` is assumed (200 Gbit/s per A100, 400 per H100 and H200)."""
GPUS_PER_NODE = 8
