"""What `log_token_signals` adds to a training step: steps with and without it, in turns, on SmolLM2-135M on a CPU.

`OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/recording.py --model outputs/SmolLM2-135M-Instruct` (first `python
examples/smollm2.py`). Every step is logged. Both kinds of steps are of one run: the setting is switched between them.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from trl_selfdistill import RLRTConfig, RLRTTrainer
from trl_selfdistill.rewards import last_number_reward

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))


class InTurns(TrainerCallback):
    """Switches the recording on for every other step, and notes what each step took, its log line included."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.trainer: Any = None
        self.seconds: dict[int, list[tuple[float, float]]] = {0: [], count: []}
        self._start = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note(state.global_step - 1)
        args.log_token_signals = self.count if state.global_step % 2 else 0
        self._start = (time.perf_counter(), time.process_time())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note(state.global_step - 1)

    def _note(self, step: int) -> None:
        if step >= 1:  # the first step warms up
            taken = (time.perf_counter() - self._start[0], time.process_time() - self._start[1])
            self.seconds[self.count if step % 2 else 0].append(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="outputs/SmolLM2-135M-Instruct")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--rollouts", type=int, default=24)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the medians to this file")
    options = parser.parse_args()
    from smollm2 import chain_sums

    turns = InTurns(options.count)
    with tempfile.TemporaryDirectory() as folder:
        config = RLRTConfig(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.rollouts,
            num_generations=8,
            max_completion_length=options.length,
            learning_rate=5e-4,
            gradient_checkpointing=False,
            logging_steps=1,
            log_token_signals=options.count,
            bf16=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        turns.trainer = RLRTTrainer(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype="bfloat16"),
            reward_funcs=last_number_reward,
            args=config,
            train_dataset=chain_sums(120, seed=0),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
            callbacks=[turns],
        )
        turns.trainer.remove_callback(PrinterCallback)
        parts = watched(turns.trainer)
        turns.trainer.train()
    print(f"{options.rollouts} rollouts of at most {options.length} tokens, {options.count} of them recorded")
    found: dict[str, Any] = {"rollouts": options.rollouts, "length": options.length, "count": options.count}
    found["steps"] = min(map(len, turns.seconds.values()))
    for number, clock in enumerate(("wall", "CPU")):
        without, with_ = (statistics.median(t[number] for t in turns.seconds[c]) for c in (0, options.count))
        found[clock] = {"without": without, "with": with_}
        print(f"{clock}: median step {without:.3f} s without, {with_:.3f} s with, ratio {with_ / without:.4f}")
    found["own"] = statistics.median(sum(p) for p in zip(*[p[1:] for p in parts.values()], strict=True))
    share = found["own"] / found["CPU"]["without"]
    print(f"the recording itself: median {found['own'] * 1e3:.1f} ms of CPU time a step, {share:.2%} of a step without")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def watched(trainer: Any) -> dict[str, list[float]]:
    """CPU seconds of each call of what the recording adds: keeping, and writing."""
    parts: dict[str, list[float]] = {"keep": [], "_record": []}
    for owner, name in ((trainer.token_log, "keep"), (trainer, "_record")):
        original = getattr(owner, name)

        def timed(*given: Any, original: Any = original, taken: list[float] = parts[name]) -> Any:
            start = time.process_time()
            result = original(*given)
            taken.append(time.process_time() - start)
            return result

        setattr(owner, name, timed)
    return parts


if __name__ == "__main__":
    main()
