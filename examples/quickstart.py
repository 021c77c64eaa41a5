"""RLRT on a real language model, on a CPU, in a few minutes: `make demo`, or `python examples/quickstart.py`.

Trains a LoRA adapter on SmolLM2-135M-Instruct to add and subtract one-digit numbers. Prints the accuracy on problems it
never saw before and after, and leaves the adapter, its model card and a picture of the curves in the output folder.

With `--tiny` the policy is a transformer of 0.4 million parameters that is built on the spot: about a minute in all.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from progress import plot_curves
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.utils import logging

from trl_selfdistill import RLRTConfig, RLRTTrainer
from trl_selfdistill.cli.evaluation import evaluate
from trl_selfdistill.cli.sampling import Sampling
from trl_selfdistill.record.progress import ProgressLines


@dataclass
class Task:
    """What is trained on what."""

    model: Any
    tokenizer: Any
    reward: Callable[..., list[float]]
    train: Dataset
    held_out: Dataset
    settings: dict[str, Any]
    base_model: str | None = None
    peft: LoraConfig | None = None


def smollm2_task(args: argparse.Namespace) -> Task:
    from smollm2 import chain_sums, smollm2

    from trl_selfdistill.rewards import last_number_reward

    folder = smollm2(args.output / "SmolLM2-135M-Instruct")
    problems = chain_sums(168, seed=args.seed)
    return Task(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        reward=last_number_reward,
        train=problems.select(range(120)),
        held_out=problems.select(range(120, 168)),
        # An instruct checkpoint: the paper's range of the token weights is 0.5. The adapter is small and new: 5e-4.
        settings={
            "max_steps": args.steps or 14,
            "per_device_train_batch_size": 24,
            "num_generations": 8,
            "max_completion_length": 24,
            "learning_rate": 5e-4,
            "gradient_checkpointing": False,  # 24 short rows fit
            "rlrt_clip": 0.5,
        },
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        peft=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )


def tiny_task(args: argparse.Namespace) -> Task:
    from tiny_policy import HINT_TEMPLATE, exact_reward, sums, tiny_policy

    model, tokenizer = tiny_policy(seed=args.seed)
    return Task(
        model=model,
        tokenizer=tokenizer,
        reward=exact_reward,
        train=sums(repeat=20),
        held_out=sums(),  # one-digit sums are 100 in all: this measures learning, not generalisation
        settings={
            "max_steps": args.steps or 150,
            "per_device_train_batch_size": 128,
            "num_generations": 8,
            "max_completion_length": 4,
            "learning_rate": 3e-4,
            "bf16": False,
            "teacher_template": HINT_TEMPLATE,
            "logging_steps": 10,
        },
    )


def accuracy(task: Task, model: Any, *, seed: int) -> float:
    """Share of right answers to the held-out problems, two completions each, at temperature 1 as in training."""
    sampling = Sampling(n=2, max_tokens=task.settings["max_completion_length"], seed=seed, batch_size=64)
    return evaluate(model, task.tokenizer, task.held_out.to_list(), task.reward, sampling)["pass@1"].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a policy of 0.4 million parameters, built on the spot")
    parser.add_argument("--steps", type=int, help="training steps (default: 14, with --tiny 150)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for all that is written")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's and transformers' own
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start = time.perf_counter()

    task = tiny_task(args) if args.tiny else smollm2_task(args)
    name = "tiny-rlrt" if args.tiny else "SmolLM2-135M-rlrt"
    folder = args.output / name
    config = {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,  # ProgressLines takes its place
        "seed": args.seed,
        **task.settings,
    }
    trainer = RLRTTrainer(
        task.model,
        task.reward,
        RLRTConfig(**config),
        task.train,
        processing_class=task.tokenizer,
        peft_config=task.peft,
        callbacks=[ProgressLines()],
    )
    trainer.remove_callback(PrinterCallback)
    print(f"{name}: {sum(p.numel() for p in trainer.model.parameters()) / 1e6:.1f} million parameters")
    before = accuracy(task, trainer.model, seed=args.seed)
    print(f"held-out accuracy before: {before:.0%}")
    trainer.train()
    after = accuracy(task, trainer.model, seed=args.seed)
    trainer.save_model()
    # The card names the model's home, not the folder that it was loaded from, and shows how to load what was saved.
    trainer.hub_model_id = str(folder)
    if task.base_model is not None:
        trainer.model.config.name_or_path = task.base_model
    trainer.create_model_card(model_name=name, tags=["arithmetic"])
    plot_curves(trainer.state.log_history, folder / "curves.png", f"{name}: accuracy {before:.0%} to {after:.0%}")
    print(f"held-out accuracy after:  {after:.0%} (before: {before:.0%})")
    print(f"model, model card and curves.png in {folder}; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
