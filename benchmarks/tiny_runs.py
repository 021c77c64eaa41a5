"""The runs of the tiny policy on one-digit sums, one of each method. `tests/test_learning.py` tests the same runs.

`OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/tiny_runs.py` writes benchmarks/results/tiny_runs.json after each
run, and skips the runs that the file holds with the settings below. `tiny_tables.py` and `tiny_health.py` make the
figures of the documentation from that file. All runs begin with the same policy and have one seed.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measure import machine
from peft import LoraConfig
from tiny_numbers import RESULTS
from tiny_raw import columns, complaints, rounded, save
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed

import trl_selfdistill

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from tiny_policy import HINT_TEMPLATE, accuracy, exact_reward, sums, tiny_policy

COMMON = {
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "max_completion_length": 4,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Run:
    """One run, as data. `settings` are those that differ from `COMMON`."""

    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)
    reward: bool = True
    lora: bool = False

    def all_settings(self) -> dict[str, Any]:
        """What the trainer's configuration gets, without the folder."""
        asks_teacher = bool(getattr(trl_selfdistill, self.trainer).views)
        template = {"teacher_template": HINT_TEMPLATE} if asks_teacher else {}
        return COMMON | template | self.settings

    def as_data(self) -> dict[str, Any]:
        """Everything that decides what the run does. A run is made again where this has changed."""
        return asdict(self) | {"settings": self.all_settings()}


def steps(count: int, **settings: Any) -> dict[str, Any]:
    return {"max_steps": count, **settings}


def opsd(**settings: Any) -> Run:
    """OPSD with LoRA, one rollout a prompt and no reward."""
    given = steps(100, num_generations=1, learning_rate=2e-3, **settings)
    return Run("OPSDTrainer", given, reward=False, lora=True)


RUNS = {
    "rlrt": Run("RLRTTrainer", steps(150)),
    "rlsd": Run("RLSDTrainer", steps(120)),
    "rlcsd": Run("RLCSDTrainer", steps(120)),
    "sdpo": Run("SDPOTrainer", steps(120)),
    "poweropd": Run("PowerOPDTrainer", steps(120), reward=False),
    "opsa": Run("OPSATrainer", steps(120)),
    "antisd": Run("AntiSDTrainer", steps(120)),
    "antisd_collapse": Run("AntiSDTrainer", steps(120, antisd_close_ratio=0.0, antisd_strength=5.0)),
    "opsd": opsd(),
    "opsd_entry_clip": opsd(opsd_entry_clip=0.05, opsd_token_clip=None),
    "opsd_unclipped": opsd(opsd_token_clip=None),
}


def make_trainer(run: Run, model: Any, tokenizer: Any, folder: Path, **overrides: Any) -> Any:
    """The trainer of a run. The seed is set first, because the weights of a new adapter are drawn here."""
    trainer_class = getattr(trl_selfdistill, run.trainer)
    config = trainer_class.config_class(output_dir=str(folder), **run.all_settings() | overrides)
    lora = LoraConfig(r=16, target_modules="all-linear") if run.lora else None
    reward = exact_reward if run.reward else None
    set_seed(config.seed)
    return trainer_class(model, reward, config, sums(repeat=20), processing_class=tokenizer, peft_config=lora)


def measured(run: Run, policy: Path, folder: Path) -> dict[str, Any]:
    """Make one run."""
    model, tokenizer = load(policy)
    before = accuracy(model, tokenizer)
    trainer = make_trainer(run, model, tokenizer, folder)
    trainer.remove_callback(PrinterCallback)
    start = time.process_time()
    with complaints(trainer) as found:
        trainer.train()
    seconds = round(time.process_time() - start, 1)
    after = accuracy(trainer.model, tokenizer)
    return {
        "run": run.as_data(),
        "machine": machine(),
        "before": rounded(before),
        "after": rounded(after),
        "training_cpu_seconds": seconds,
        "health": found,
        "steps": columns(trainer.state.log_history),
    }


def load(policy: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32), AutoTokenizer.from_pretrained(policy)


def measure(runs: dict[str, Run], path: Path, *, policy_steps: int) -> dict[str, Any]:
    """Make the runs that `path` does not hold. All begin with the same policy, which is built once."""
    results = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    missing = {name: run for name, run in runs.items() if results["runs"].get(name, {}).get("run") != run.as_data()}
    if not missing:
        return results
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder, "policy")
        for part in tiny_policy(steps=policy_steps):
            part.save_pretrained(policy)
        results["accuracy_with_hint"] = rounded(accuracy(*load(policy), hint=True))
        for name, run in missing.items():
            results["runs"][name] = measured(run, policy, Path(folder, name))
            save(path, results)
            print(f"{name}: {results['runs'][name]['before']:.1%} -> {results['runs'][name]['after']:.1%}", flush=True)
    return results


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*RUNS], default=[*RUNS], help="the runs to be made")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file with the runs, which is written")
    parser.add_argument("--toy", action="store_true", help="two small steps of a policy that knows little: a test")
    args = parser.parse_args(given)
    if args.toy and args.results == RESULTS:
        parser.error("--toy needs a file of its own: --results")
    toy = {"max_steps": 2, "per_device_train_batch_size": 16} if args.toy else {}
    runs = {name: replace(RUNS[name], settings=RUNS[name].settings | toy) for name in args.only}
    measure(runs, args.results, policy_steps=20 if args.toy else 400)


if __name__ == "__main__":
    main()
