"""CPU seconds of the teacher under RLRT, which asks it once, and under RLCSD, which asks it twice or five times.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/views.py
    python benchmarks/views.py --toy

One group of G rollouts, half of them right. Prompts have P tokens, completions T; other completions are the context.
The model has SmolLM2-135M's shape and random weights. Rounds are interleaved, the median of process time counts.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import medians
from phase_variants import LETTERS, model_of

from trl_selfdistill import RLCSDConfig, RLCSDTrainer, RLRTConfig, RLRTTrainer, Rollout
from trl_selfdistill.trainer.rollouts import Lesson

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from tiny_policy import build_tokenizer

VARIANTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "rlrt": (RLRTTrainer, RLRTConfig, {}),
    "rlcsd, 1 wrong peer": (RLCSDTrainer, RLCSDConfig, {"teacher_model_kind": "live", "rlcsd_wrong_peers": 1}),
    "rlcsd, 4 wrong peers": (RLCSDTrainer, RLCSDConfig, {"teacher_model_kind": "live"}),
}


def texts_of(a: argparse.Namespace) -> tuple[str, list[str]]:
    """A prompt and G completions, a token each letter."""
    draw = torch.Generator().manual_seed(0)
    sizes = [a.prompt, *[a.completion] * a.rollouts]
    rows = [torch.randint(len(LETTERS), (size,), generator=draw).tolist() for size in sizes]
    prompt, *completions = ["".join(LETTERS[code] for code in row) for row in rows]
    return prompt, completions


def group_of(prompt: str, completions: list[str]) -> list[Rollout]:
    """The rollouts of one group, every other one right. Each sees the others in one order, as in a run."""
    right = {i for i in range(len(completions)) if i % 2 == 0}

    def others(i: int, kind: bool) -> tuple[str, ...]:
        return tuple(text for j, text in enumerate(completions) if j != i and (j in right) == kind)

    return [
        Rollout(
            {}, text, correct=i in right, peers=others(i, True), wrong_peers=others(i, False), index=i, prompt=prompt
        )
        for i, text in enumerate(completions)
    ]


def teacher_of(a: argparse.Namespace, name: str, folder: str) -> Any:
    """A function that has the teacher of a variant score the group once."""
    trainer_class, config_class, special = VARIANTS[name]
    prompt, completions = texts_of(a)
    common: dict[str, Any] = {"output_dir": folder, "use_cpu": True, "bf16": False, "report_to": "none"}
    sizes: dict[str, Any] = {"per_device_train_batch_size": a.rollouts, "num_generations": a.rollouts}
    args = config_class(**common, **sizes, **special, teacher_template="{context}{prompt}")
    tokenizer = build_tokenizer()
    data = Dataset.from_dict({"prompt": [prompt] * 8})
    trainer = trainer_class(model_of(a), lambda completions, **_: [0.0] * len(completions), args, data, None, tokenizer)
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in completions])
    prompt_ids = torch.tensor([tokenizer(prompt)["input_ids"]] * a.rollouts)
    batch = {"completion_ids": ids, "completion_mask": torch.ones_like(ids), "advantages": torch.zeros(a.rollouts)}
    batch |= {"prompt_ids": prompt_ids, "prompt_mask": torch.ones_like(prompt_ids)}
    rollouts = group_of(prompt, completions)
    lesson = Lesson(rollouts, trainer._views(batch, [prompt] * a.rollouts, rollouts), torch.ones(a.rollouts))
    return lambda: trainer.apply_teacher({**batch}, lesson)


def main(given: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the seconds to this file")
    parser.add_argument("--toy", action="store_true", help="a model of a few weights, to try the script")
    a = parser.parse_args(given)
    a.model, a.dtype = "smollm2", "float32"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        took = medians({name: teacher_of(a, name, folder) for name in VARIANTS}, a.rounds, "cpu")
    ratios = {name: value / took["rlrt"] for name, value in took.items()}
    print(f"P = {a.prompt}, T = {a.completion}, G = {a.rollouts}, float32, cpu")
    print("| teacher of | seconds | ratio |\n|---|---|---|")
    for name, value in took.items():
        print(f"| {name} | {value:.2f} | {ratios[name]:.2f} |")
    if a.json:
        a.json.write_text(json.dumps(took, indent=1))
    return ratios


if __name__ == "__main__":
    main()
