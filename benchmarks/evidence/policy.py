"""The policy before reinforcement learning: a language model of half a million parameters, made in 72 CPU seconds.

It is taught two things. Without a hint: the task's plain labels, right or wrong. With a right completion as a hint,
`[ 8 5 13 ... ] 3 8 5 9 =`: right completions. That is the position of a self-distillation teacher. Hints are of
training problems alone.
"""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tiny_policy import build_model
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3ForCausalLM

from evidence.task import HINT_TEMPLATE, Task

SHAPE = {"num_hidden_layers": 3, "hidden_size": 128, "head_dim": 32, "intermediate_size": 288}
WARM_UP = {"steps": 600, "batch": 96, "hinted": 0.3, "peak": 4e-3}
_NUMBERS = 100


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a number, so that a fact is the choice of one token."""
    words = ["<|pad|>", "<|end|>", "?", "[", "]", "=", "+", "-", "*", *map(str, range(_NUMBERS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:2]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", unk_token="?", padding_side="left"
    )


def examples(task: Task, rng: random.Random, *, plain: int, hinted: int) -> list[tuple[str, str]]:
    """(prompt, label) of supervised examples, without a hint from all problems, with one from training problems."""
    train, test = task.split
    rows = []
    for place in rng.choices(range(len(train) + len(test)), k=plain):
        problem = train[place] if place < len(train) else test[place - len(train)]
        rows.append((task.prompt(problem), task.plain_label(problem, rng)))
    for problem in rng.choices(train, k=hinted):
        hint, label = task.hinted_label(problem, rng)
        rows.append((HINT_TEMPLATE.format(context=hint, prompt=task.prompt(problem)), label))
    return rows


def supervised_steps(model: Qwen3ForCausalLM, tokenizer: Any, task: Task, **settings: Any) -> None:
    """Teach the policy its habits. The rate rises for 50 steps and falls as a cosine to nothing."""
    a = {**WARM_UP, **settings}
    rng = random.Random(f"warm-up/{task.name}/{task.seed}")
    hinted = round(a["batch"] * a["hinted"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=a["peak"], betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    for step in range(a["steps"]):
        fallen = 0.5 + 0.5 * math.cos(math.pi * step / a["steps"])
        optimizer.param_groups[0]["lr"] = a["peak"] * min(1.0, (step + 1) / 50) * fallen
        rows = examples(task, rng, plain=a["batch"] - hinted, hinted=hinted)
        parts = [part for part in (rows[: -hinted or None], rows[a["batch"] - hinted :]) if part]
        loss = sum((label_loss(model, tokenizer, part) * (len(part) / len(rows)) for part in parts), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def label_loss(model: Any, tokenizer: Any, rows: list[tuple[str, str]]) -> torch.Tensor:
    """Mean over the tokens of the labels and their ends."""
    prompts = tokenizer([prompt for prompt, _ in rows])["input_ids"]
    whole = tokenizer([f"{prompt} {label}<|end|>" for prompt, label in rows])["input_ids"]
    masked = [[-100] * len(p) + ids[len(p) :] for p, ids in zip(prompts, whole, strict=True)]
    ids, labels = padded(whole, tokenizer.pad_token_id), padded(masked, -100)  # on the right, behind what is read
    return model(input_ids=ids, labels=labels).loss


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def policy_folder(task: Task, cache: Path, **settings: Any) -> Path:
    """The folder of the warmed-up policy of this world, made where it is missing."""
    folder = cache / f"{task.name}-{task.seed}"
    with FileLock(f"{folder}.lock"):  # another process may be making it
        if not folder.exists():
            tokenizer = build_tokenizer()
            model = build_model(tokenizer, seed=task.seed, **SHAPE)
            supervised_steps(model, tokenizer, task, **settings)
            unfinished = cache / f"{folder.name}-unfinished"
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            (unfinished / "warm_up.json").write_text(json.dumps({**WARM_UP, **settings}))
            shutil.move(unfinished, folder)
    return folder


def load_policy(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)
