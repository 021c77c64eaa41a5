"""Train in a process of its own: `python run_trainer.py job.json`. Used for restarts and for several processes.

The job names the trainer, its config and the policy's folder; `out` gets the weights, the log and the scored batches.
With `"scripted": true` the rollouts are a function of their global index, whatever the number of processes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from helpers import lenient_reward, step_logs
from peft import LoraConfig
from safetensors.torch import save_file
from tiny_policy import sums
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_selfdistill
from trl_selfdistill.contexts import resolve_context
from trl_selfdistill.ema import EMATeacher


def scripted_rollouts(prompts: list, trainer: Any) -> dict[str, Any]:
    """Completions of one to three digits and an end token, the same for a global index whatever process draws it."""
    tokenizer = trainer.processing_class
    first = trainer.accelerator.process_index * len(prompts)
    completions = []
    for i in range(first, first + len(prompts)):
        text = "".join(str((i * 7 + trainer.state.global_step * 5 + k) % 10) for k in range(1 + i % 3))
        completions.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


def record_batches(trainer: Any, contexts: list[str | None]) -> list[dict[str, Any]]:
    """Every scored batch of this process, row by row, without padding."""
    batches = []
    score = trainer._generate_and_score_completions

    def recording(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        contexts.clear()
        batch = score(inputs)
        mask = batch["completion_mask"].bool()
        advantages = batch["advantages"]
        advantages = advantages if advantages.ndim == 2 else advantages.unsqueeze(1).expand_as(mask)
        rows = [
            {
                "prompt": inputs[i]["prompt"][-1]["content"],
                "completion": batch["completion_ids"][i][mask[i]].tolist(),
                "advantages": advantages[i][mask[i]].tolist(),
                "context": contexts[i],
            }
            for i in range(len(inputs))
        ]
        batches.append({"rows": rows})
        return batch

    trainer._generate_and_score_completions = recording
    return batches


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    out = Path(job["out"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    trainer_class = getattr(trl_selfdistill, job["trainer"])
    config = trainer_class.config_class(**job["config"])
    contexts: list[str | None] = []
    builder = resolve_context(config.context)

    def recorded_builder(rollout: Any) -> str | None:
        contexts.append(builder(rollout))
        return contexts[-1]

    trainer = trainer_class(
        model,
        None if job["trainer"] == "OPSDTrainer" else lenient_reward,
        config,
        sums(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if job.get("lora") else None,
        rollout_func=scripted_rollouts if job.get("scripted") else None,
        context_builder=recorded_builder,
    )
    batches = record_batches(trainer, contexts)
    assert trainer.accelerator.num_processes == job.get("processes", 1), trainer.accelerator.num_processes
    trainer.train(resume_from_checkpoint=job.get("resume"))
    rank = trainer.accelerator.process_index
    out.mkdir(parents=True, exist_ok=True)
    (out / f"batches-{rank}.json").write_text(json.dumps(batches))
    if rank == 0:
        weights = {
            name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
        }
        save_file(weights, out / "weights.safetensors")
        (out / "log.json").write_text(json.dumps(step_logs(trainer)))
        state = {"values": trainer.state_values()}
        (out / "state.json").write_text(json.dumps(state))
        if isinstance(trainer.teacher, EMATeacher):
            save_file(trainer.teacher.state(), out / "shadow.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
