"""One run: a method on one world with one seed, and what it was worth at fixed steps."""

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, TrainerCallback

from evidence.measures import SAMPLES, evaluation
from evidence.methods import METHODS, UNTAUGHT, configuration, trainer_class
from evidence.policy import load_policy, policy_folder
from evidence.sampling import sample
from evidence.task import HINT_TEMPLATE, Task
from evidence.tasks import make_task

ROLLOUTS, GROUP, EVALUATIONS = 128, 8, 5
COUNTED_STEP = 2
"""The step whose floating point operations are counted. The count slows it, so it is left out of the time."""


class Watch(TrainerCallback):
    """Evaluates on the test problems at fixed steps, and counts CPU seconds and operations of the training alone."""

    def __init__(self, task: Task, tokenizer: Any, every: int, samples: int, problems: int | None) -> None:
        self.task, self.tokenizer, self.every, self.samples = task, tokenizer, every, samples
        self.problems = task.split[1][:problems]
        self.curve: list[dict[str, Any]] = []
        self.flops = self.seconds = 0.0
        self.counted = FlopCounterMode(display=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        self.evaluate(model, 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.process_time()
        if state.global_step + 1 == COUNTED_STEP:
            self.counted.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step == COUNTED_STEP:
            self.counted.__exit__(None, None, None)
            self.flops = float(self.counted.get_total_flops())
        else:
            self.seconds += time.process_time() - self._start
        if state.global_step % self.every == 0:
            self.evaluate(model, state.global_step)

    def evaluate(self, model: Any, step: int) -> None:
        prompts = [self.task.prompt(problem) for problem in self.problems]
        limit = self.task.limit
        texts, entropy = sample(model, self.tokenizer, prompts, samples=self.samples, limit=limit, seed=step)
        found = evaluation(self.task, self.problems, texts)
        self.curve.append({"step": step, "entropy": entropy, "cpu_seconds": self.seconds, **found})


def rows_of(task: Task) -> Dataset:
    """The training problems. The judge gets a problem by its place: a list may not hold problems of several types."""
    train = task.split[0]
    rows = [{"prompt": task.prompt(p), "solution": task.gold(p), "place": i} for i, p in enumerate(train)]
    return Dataset.from_list(rows)


def reward_of(task: Task) -> Any:
    train = task.split[0]

    def right(completions: list[str], place: list[int], **kwargs: Any) -> list[float]:
        return [float(task.judge(train[i], text).right) for i, text in zip(place, completions, strict=True)]

    return right


def settings_of(run: dict[str, Any], task: Task, folder: str) -> dict[str, Any]:
    """What all methods have in common, and what the plan says of this run."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": run.get("rollouts", ROLLOUTS),
        "num_generations": GROUP,
        "max_completion_length": task.limit,
        "learning_rate": run["lr"],
        "lr_scheduler_type": "constant",
        "max_steps": run["steps"],
        "logging_steps": max(1, run["steps"] // EVALUATIONS),
        "seed": run["seed"],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def train(run: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Make the policy where it is missing, train it, and return the run with its curve. Deterministic by its seed."""
    warnings.simplefilter("ignore")
    task, method = make_task(run["task"], run["world"]), METHODS[run["method"]]
    model, tokenizer = load_policy(policy_folder(task, cache, **run.get("warm_up", {})))
    every = max(1, run["steps"] // EVALUATIONS)
    watch = Watch(task, tokenizer, every, run.get("samples", SAMPLES), run.get("problems"))
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(run, task, folder)
        teacher = {} if method.trainer in UNTAUGHT else {"teacher_template": HINT_TEMPLATE}
        args = configuration(method, {**settings, **teacher}, run.get("overrides", {}))
        trainer: Any = trainer_class(method)(
            model=model,
            reward_funcs=reward_of(task),
            args=args,
            train_dataset=rows_of(task),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(watch)
        started = time.monotonic()
        trainer.train()
    log = [{k: v for k, v in entry.items() if v == v} for entry in trainer.state.log_history if "loss" in entry]
    wall = time.monotonic() - started
    return {**run, "flops_per_step": watch.flops, "wall_seconds": wall, "curve": watch.curve, "log": log}
