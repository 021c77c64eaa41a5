"""A real checkpoint: SmolLM2-135M-Instruct learns one-digit sums by five methods, with three seeds each.

    PYTHONPATH=benchmarks:examples OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m evidence.smollm outputs/evidence

A short supervised warm-up comes first, for the checkpoint makes no use of a hint: with a hint it is taught to say it,
without one a number that is right one time in four. So it starts low, and is a good teacher of itself. Held-out
problems are in no part of the warm-up. A seed decides the split of the problems, the warm-up, the adapter's first
weights and the draw of the rollouts; all methods share it. Each run leaves a file, and finished runs are skipped.
"""

import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from evidence.markdown import table

FILE = Path(__file__).parents[1] / "results/evidence/smollm.json"
SEEDS = (0, 1, 2)
STEPS, EVERY, SAMPLES, TRAINING_PROBLEMS = 20, 10, 8, 60
HINT = "{prompt} Hint: the answer is {context}."
WARM_UP = {"steps": 25, "rows": 16, "peak": 1e-3, "right": 0.6}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("trl.GRPOTrainer", {}),
    "rlrt": ("RLRTTrainer", {"rlrt_clip": 0.5}),  # the paper's for an instruct checkpoint
    "antisd": ("AntiSDTrainer", {}),
    "opsd": ("OPSDTrainer", {}),
    "sdpo": ("SDPOTrainer", {}),
}
SETTINGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 32,
    "num_generations": 8,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "use_cpu": True,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


def hinted(row: dict[str, Any]) -> list[dict[str, str]]:
    """The prompt of a row as the teacher sees it."""
    *before, last = row["prompt"]
    return [*before, {**last, "content": HINT.format(prompt=last["content"], context=row["solution"])}]


def warm_up_rows(train: list[dict[str, Any]], rng: random.Random, count: int) -> list[tuple[list[dict[str, str]], str]]:
    """(prompt, answer): every second one with the hint, the others right with the chance that `WARM_UP` names."""
    rows = []
    for number, row in enumerate(rng.choices(train, k=count)):
        right = int(row["solution"])
        other = rng.choice([n for n in range(19) if n != right])
        said = right if number % 2 or rng.random() < WARM_UP["right"] else other
        rows.append((hinted(row) if number % 2 else row["prompt"], str(said)))
    return rows


def warm_up(model: Any, tokenizer: Any, train: list[dict[str, Any]], seed: int) -> None:
    """Supervised steps on the training problems: all weights of the adapters in `model`, the rate falls to nothing."""
    import torch

    rng = random.Random(f"smollm/{seed}")
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=WARM_UP["peak"], weight_decay=0.0)
    for step in range(WARM_UP["steps"]):
        optimizer.param_groups[0]["lr"] = WARM_UP["peak"] * (1 - step / WARM_UP["steps"])
        rows = warm_up_rows(train, rng, WARM_UP["rows"])
        prompts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p, _ in rows]
        answers = [tokenizer(said + tokenizer.eos_token)["input_ids"] for _, said in rows]
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = [p + a + [tokenizer.eos_token_id] * (width - len(p + a)) for p, a in zip(prompts, answers, strict=True)]
        labels = [[-100] * len(p) + a + [-100] * (width - len(p + a)) for p, a in zip(prompts, answers, strict=True)]
        model(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def policy_folder(cache: Path, train: list[dict[str, Any]], seed: int) -> Path:
    """The folder of the warmed-up checkpoint of a seed, made where it is missing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from smollm2 import smollm2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = cache / f"smollm-{seed}"
    if not folder.exists():
        start = smollm2(cache / "SmolLM2-135M-Instruct")
        tokenizer = AutoTokenizer.from_pretrained(start)
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(start, dtype=torch.bfloat16)
        model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        warm_up(model, tokenizer, train, seed)
        merged: Any = model.merge_and_unload()
        merged.save_pretrained(cache / "unfinished")
        tokenizer.save_pretrained(cache / "unfinished")
        (cache / "unfinished").rename(folder)
    return folder


def problems_of(seed: int) -> tuple[Any, list[dict[str, Any]]]:
    """Training problems, and those that are held out."""
    from smollm2 import chain_sums, split

    train, held_out = split(chain_sums(100, seed=0, signs="+").shuffle(seed), TRAINING_PROBLEMS)
    return train, held_out.to_list()


def measured(model: Any, tokenizer: Any, rows: list[dict[str, Any]], step: int) -> dict[str, float]:
    """pass@1, pass@8 and the mean number of tokens."""
    from trl_selfdistill.cli.evaluation import evaluate
    from trl_selfdistill.cli.sampling import Sampling
    from trl_selfdistill.rewards import last_number_reward

    sampling = Sampling(n=SAMPLES, max_tokens=SETTINGS["max_completion_length"], seed=step, batch_size=64)
    found = evaluate(model, tokenizer, rows, last_number_reward, sampling)
    return {"step": step, **{name: found[name].value for name in ("pass@1", "pass@8", "length")}}


def one_run(method: str, seed: int, cache: Path) -> dict[str, Any]:
    """Train, and measure at fixed steps."""
    import importlib

    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
    from trl import GRPOConfig

    import trl_selfdistill
    from trl_selfdistill.rewards import last_number_reward

    train, held_out = problems_of(seed)
    folder = policy_folder(cache, train.to_list(), seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    # For the last position of a prompt, which is a slice, torch copies a frozen output matrix for each row: seconds.
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    set_seed(seed)
    name, own = METHODS[method]
    home, _, name = name.rpartition(".")
    cls: Any = getattr(importlib.import_module(home) if home else trl_selfdistill, name)
    taught = {} if home else {"context": "gold", "teacher_template": HINT, "log_token_signals": 0}
    curve = [measured(model, tokenizer, held_out, 0)]
    with_hint = measured(model, tokenizer, [{**row, "prompt": hinted(row)} for row in held_out], 0)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
            if state.global_step % EVERY == 0:
                curve.append(measured(model, tokenizer, held_out, state.global_step))

    with tempfile.TemporaryDirectory() as out:
        config = (GRPOConfig if home else cls.config_class)(output_dir=out, seed=seed, **{**SETTINGS, **taught, **own})
        peft = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
        trainer = cls(
            model=model,
            reward_funcs=last_number_reward,
            args=config,
            train_dataset=train,
            processing_class=tokenizer,
            peft_config=peft,
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        begun = time.process_time()
        trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    cpu = round(time.process_time() - begun, 1)
    return {
        "method": method, "seed": seed, "curve": curve, "with_hint": with_hint, "rewards": rewards, "cpu_seconds": cpu
    }  # fmt: skip


def results_table(runs: list[dict[str, Any]]) -> str:
    """Means over the seeds, and the seeds' own numbers where it matters."""
    lines = []
    for method in METHODS:
        own = [run for run in runs if run["method"] == method]
        if not own:
            continue
        cells: list[Any] = [method, len(own)]
        for metric in ("pass@1", "pass@8"):
            for place in range(len(own[0]["curve"])):
                cells.append(f"{statistics.mean(run['curve'][place][metric] for run in own):.2f}")
        cells.append(", ".join(f"{run['curve'][-1]['pass@1']:.2f}" for run in own))
        cells.append(f"{statistics.mean(run['cpu_seconds'] for run in own):.0f}")
        lines.append(cells)
    if not lines:
        return "Not run yet."
    steps = [point["step"] for point in runs[0]["curve"]]
    heads = [f"{metric}, step {step}" for metric in ("pass@1", "pass@8") for step in steps]
    return table(["method", "seeds", *heads, "pass@1 at the end, by seed", "CPU seconds"], lines)


def starts_table(runs: list[dict[str, Any]]) -> str:
    """The warmed-up checkpoint of each seed, without the hint and with it."""
    first = {run["seed"]: run for run in reversed(runs)}
    rows = [
        [seed, *(f"{first[seed]['curve'][0][m]:.2f} → {first[seed]['with_hint'][m]:.2f}" for m in ("pass@1", "pass@8"))]
        for seed in sorted(first)
    ]
    return table(["seed", "pass@1, plain → with the hint", "pass@8"], rows) if rows else "Not run yet."


def load(file: Path = FILE) -> list[dict[str, Any]]:
    return json.loads(file.read_text()) if file.exists() else []


def main(cache: Path, file: Path = FILE) -> None:
    """All runs, seed by seed. The file is written after each of them."""
    warnings.simplefilter("ignore")
    cache.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for method in METHODS:
            runs = load(file)
            if any((run["method"], run["seed"]) == (method, seed) for run in runs):
                continue
            runs.append(one_run(method, seed, cache))
            unfinished = file.with_suffix(".unfinished")
            unfinished.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
            unfinished.replace(file)
            print(results_table(runs), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
