"""A language model of 0.4 million parameters that knows one-digit sums but rarely says so.

It is built and trained on the spot, in 20 to 40 seconds on one CPU core. Supervised steps on sums with 65 % wrong
labels leave it right about one time in four; half of the examples carry the answer as a hint, `[12]5+7=`, so that with
the hint it is right 97 % of the time. That is the position of a self-distillation teacher, in the smallest possible
model: good for tests and for watching an algorithm work.
"""

import math
import random
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trl_selfdistill.cli.evaluation import evaluate
from trl_selfdistill.cli.sampling import Sampling

PROBLEMS = list(product(range(10), range(10)))
HINT_TEMPLATE = "[{context}]{prompt}"
LabelledRow = Callable[[PreTrainedTokenizerFast, random.Random], tuple[list[int], list[int]]]
_WRONG_BY = (-10, -3, -2, -1, 1, 2, 3, 10)
_SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus five special ones and a chat template. Takes any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", padding_side="left"
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **overrides: Any) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.43 million parameters with random weights."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 288,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
    }
    ends: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen3ForCausalLM(Qwen3Config(**{**shape, **ends, **overrides}))
    model.generation_config.update(**ends)
    return model


def supervised_steps(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int = 400,
    batch: int = 128,
    seed: int = 0,
    labelled_row: LabelledRow | None = None,
) -> None:
    """Teach the model sums with 65 % wrong labels, half of them with a hint in the prompt that is always the label.

    `labelled_row` draws other examples than sums: (token ids, labels that are -100 where nothing is learnt).
    """
    make_row = labelled_row or _labelled_row
    rng = random.Random(seed)
    peak = 5e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98))
    model.train()
    for step in range(steps):
        warm, left = min(1.0, (step + 1) / 50), 0.55 + 0.45 * math.cos(math.pi * step / steps)
        optimizer.param_groups[0]["lr"] = peak * warm * left
        rows = [make_row(tokenizer, rng) for _ in range(batch)]
        ids, labels = _pad_right([r[0] for r in rows], 0), _pad_right([r[1] for r in rows], -100)
        loss = model(input_ids=ids, attention_mask=(_pad_right([[1] * len(r[0]) for r in rows], 0)), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def _labelled_row(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[list[int], list[int]]:
    a, b = rng.choice(PROBLEMS)
    label = a + b if rng.random() < 0.35 else max(0, a + b + rng.choice(_WRONG_BY))
    question = f"{a}+{b}="
    if rng.random() < 0.5:
        question = f"[{label}]{question}"
    prompt = tokenizer(f"<|user|>{question}<|end|><|assistant|>")["input_ids"]
    answer = tokenizer(f"{label}<|end|>")["input_ids"]
    return [*prompt, *answer], [-100] * len(prompt) + answer


def _pad_right(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def tiny_policy(*, steps: int = 400, seed: int = 0) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The trained model and its tokenizer."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=seed)
    supervised_steps(model, tokenizer, steps=steps, seed=seed)
    return model, tokenizer


def sums(*, repeat: int = 1) -> Dataset:
    """All 100 one-digit sums as conversations, with the answer as `solution`."""
    rows = [
        {"prompt": [{"role": "user", "content": f"{a}+{b}="}], "solution": str(a + b)} for a, b in PROBLEMS * repeat
    ]
    return Dataset.from_list(rows)


def exact_reward(completions: list, solution: list[str], **kwargs: Any) -> list[float]:
    """1.0 where the completion is the answer and nothing else."""
    return [float(c[0]["content"] == s) for c, s in zip(completions, solution, strict=True)]


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, hint: bool = False, samples: int = 8, seed: int = 0
) -> float:
    """Share of right answers over all 100 sums, `samples` each, at temperature 1; `hint` shows the answer first."""
    questions = [((f"[{a + b}]" if hint else "") + f"{a}+{b}=", str(a + b)) for a, b in PROBLEMS]
    rows = [{"prompt": [{"role": "user", "content": q}], "solution": answer} for q, answer in questions]
    sampling = Sampling(n=samples, max_tokens=4, seed=seed, batch_size=800)
    return evaluate(model, tokenizer, rows, exact_reward, sampling)["pass@1"].value
