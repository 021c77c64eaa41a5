"""Completions for many prompts, reproducibly: each batch has a seed of its own, so that any part can be made again."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig

from trl_selfdistill.context.encoding import pad_left


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. The defaults are those of TRL's GRPO: the policy as it is.

    Raises `ValueError` for numbers that cannot be.
    """

    n: int = 8
    """Completions per prompt."""
    max_tokens: int = 1024
    temperature: float = 1.0
    """0 takes the most probable token, always: one completion per prompt is all there is."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    batch_size: int = 32
    """Completions at a time. Part of the seeds' plan: another size draws other completions."""

    def __post_init__(self) -> None:
        for name in ("n", "max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must not be negative.")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"temperature=0 gives the same completion n={self.n} times. Set n=1, or a temperature.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1.")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must not be negative. 0 means all tokens.")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Completions that are drawn together: samples `first` to `last` (excluded) of each of `problems`."""

    problems: tuple[int, ...]
    first: int
    last: int

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(problem, sample) of each completion."""
        return [(problem, sample) for problem in self.problems for sample in range(self.first, self.last)]

    def seed(self, sampling: Sampling, name: str) -> int:
        """A number of 63 bits from the run's seed, a name such as the thinking mode, and the chunk's place."""
        text = f"{sampling.seed}/{name}/{self.problems[0]}/{self.first}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Generator(Protocol):
    """Draws completions."""

    def __call__(self, prompts: Sequence[list[int]], seed: int) -> list[list[int]]:
        """One completion per prompt as token ids, up to its end token, which it includes."""
        ...


def plan_chunks(problems: int, sampling: Sampling) -> list[Chunk]:
    """All completions in chunks of at most `batch_size`: several whole problems, or a part of one."""
    n, size = sampling.n, sampling.batch_size
    if size < n:
        return [Chunk((p,), first, min(first + size, n)) for p in range(problems) for first in range(0, n, size)]
    whole = size // n
    return [Chunk(tuple(range(p, min(p + whole, problems))), 0, n) for p in range(0, problems, whole)]


class TransformersGenerator:
    """Generation with `model.generate`, in evaluation mode, without a trace in torch's global random state.

    Args:
        model: a causal language model, PEFT or not.
        tokenizer: its tokenizer.
        sampling: the settings. The model's own generation settings (penalties, top-k) are not used.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling) -> None:
        self.end_ids = end_ids(model, tokenizer)
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        self._settings = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sampling.temperature > 0,
            repetition_penalty=1.0,
            pad_token_id=pad_id(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=sorted(self.end_ids),
            disable_compile=True,
            **(drawn if sampling.temperature > 0 else {}),
        )

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], seed: int) -> list[list[int]]:
        device = self._model.device
        ids, mask = pad_left(self._tokenizer, prompts)
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                out = self._model.generate(
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=self._settings
                )
        finally:
            self._model.train(was_training)
        return [until_end(row, self.end_ids) for row in out[:, ids.size(1) :].tolist()]


def pad_id(tokenizer: Any) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion: the tokenizer's, and those of the model's generation settings."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return {token for token in (tokenizer.eos_token_id, *listed) if token is not None}


def until_end(ids: list[int], ends: set[int]) -> list[int]:
    """`ids` up to the first end token, which is kept; what follows is padding."""
    place = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: place + 1]
