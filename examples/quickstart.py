"""RLRT on a real language model, on a CPU, in a few minutes: `make demo`, or `python examples/quickstart.py`.

Trains a LoRA adapter on SmolLM2-135M-Instruct to add one-digit numbers. Prints the accuracy on problems it
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
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
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


SMOLLM2 = {
    "max_steps": 12,
    "per_device_train_batch_size": 32,
    "num_generations": 8,
    "max_completion_length": 12,  # "The answer to the problem is 7." is as long
    "learning_rate": 1e-3,  # the adapter is small and new
    "gradient_checkpointing": False,  # 32 short rows fit
    "rlrt_clip": 0.5,  # the paper's for an instruct checkpoint
}

TINY = {
    "max_steps": 150,
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "max_completion_length": 4,
    "learning_rate": 3e-4,
    "bf16": False,
    "logging_steps": 10,
}


def smollm2_task(args: argparse.Namespace) -> Task:
    from smollm2 import chain_sums, smollm2, split

    from trl_selfdistill.rewards import last_number_reward

    folder = smollm2(args.output / "SmolLM2-135M-Instruct")
    problems = chain_sums(100, seed=0, signs="+")  # all there are
    train, held_out = split(problems.shuffle(args.seed), 60)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    # For the last position of a prompt, which is a slice, torch copies a frozen output matrix for each row: seconds.
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    return Task(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        reward=last_number_reward,
        train=train,
        held_out=held_out,
        settings=SMOLLM2 | ({"max_steps": args.steps} if args.steps else {}),
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        peft=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]),
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
        settings=TINY | {"teacher_template": HINT_TEMPLATE} | ({"max_steps": args.steps} if args.steps else {}),
    )


def accuracy(task: Task, model: Any, *, seed: int) -> float:
    """Share of right answers to the held-out problems, four completions each, at temperature 1 as in training."""
    sampling = Sampling(n=4, max_tokens=task.settings["max_completion_length"], seed=seed, batch_size=64)
    return evaluate(model, task.tokenizer, task.held_out.to_list(), task.reward, sampling)["pass@1"].value


@dataclass
class Outcome:
    """What a run found."""

    before: float
    after: float
    training_cpu_seconds: float
    history: list[dict[str, Any]]


def run(args: argparse.Namespace) -> Outcome:
    """Train, measure before and after, and leave model, card and picture in the output folder."""
    set_seed(args.seed)  # before the adapter is made
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
    print(f"held-out accuracy before: {before:.0%}", flush=True)
    start = time.process_time()
    trainer.train()
    outcome = Outcome(before, 0.0, time.process_time() - start, trainer.state.log_history)
    outcome.after = accuracy(task, trainer.model, seed=args.seed)
    print(f"held-out accuracy after:  {outcome.after:.0%} (before: {before:.0%})", flush=True)
    save(trainer, task, folder, outcome)
    return outcome


def save(trainer: RLRTTrainer, task: Task, folder: Path, outcome: Outcome) -> None:
    """The model, its card, and the picture of the curves."""
    trainer.save_model()
    # The card names the model's home, not the folder that it was loaded from, and shows how to load what was saved.
    trainer.hub_model_id = str(folder)
    if task.base_model is not None:
        trainer.model.config.name_or_path = task.base_model
    trainer.create_model_card(model_name=folder.name, tags=["arithmetic"])
    title = f"{folder.name}: accuracy {outcome.before:.0%} to {outcome.after:.0%}"
    plot_curves(outcome.history, folder / "curves.png", title)
    print(f"model, model card and curves.png in {folder}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a policy of 0.4 million parameters, built on the spot")
    parser.add_argument("--steps", type=int, help="training steps (default: 12, with --tiny 150)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for all that is written")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def quiet() -> None:
    """Leave out warnings and progress bars that are TRL's and transformers' own."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main() -> None:
    args = parser().parse_args()
    quiet()
    start = time.perf_counter()
    run(args)
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
