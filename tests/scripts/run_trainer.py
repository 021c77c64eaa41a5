"""Train in a process of its own: `python run_trainer.py job.json...`. Used for restarts and for several processes.

The job names the trainer, its config and the policy's folder; `out` gets the weights, the log and the scored batches.
With `"scripted": true` the rollouts are a function of their global index, whatever the number of processes.
`"taught": [...]` leaves all other rows of a batch (global indices) without a teacher. With `"refused": true` the
trainer must refuse to be made, and the reason is written instead.
"""

import gc
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import accelerate.state
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from helpers import lenient_reward, step_logs
from peft import LoraConfig
from safetensors.torch import save_file
from tiny_policy import sums
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_selfdistill
from trl_selfdistill.context.builders import resolve_context
from trl_selfdistill.context.memory import LessonMemory
from trl_selfdistill.teachers.ema import EMATeacher


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
                "context": contexts[i] if trainer.views else None,
            }
            for i in range(len(inputs))
        ]
        batches.append({"rows": rows})
        return batch

    def shaped() -> Any:
        part = take()
        if part is not None and part.advantages is not None:
            for i, row in enumerate(part.rows.tolist()):
                batches[-1]["rows"][row]["advantages"] = part.advantages[i][part.mask[i]].tolist()
        return part

    take = trainer._signals["train"].take
    trainer._signals["train"].take = shaped
    trainer._generate_and_score_completions = recording
    return batches


def allow_fsdp_on_cpu() -> None:
    """accelerate makes FSDP of several processes on accelerators only; on CPUs it falls back to DDP without a word."""
    original = AcceleratorState.__init__

    def patched(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        fresh = not AcceleratorState._shared_state
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fresh and fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = patched


def use_deepspeed(config: dict[str, Any], file: Path) -> None:
    """What `accelerate launch` does. Given as an argument of the trainer, `deepspeed` needs a GPU to find a backend."""
    file.write_text(json.dumps(config))
    os.environ.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file))


def whole_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """All parameters, gathered. To be called by every process."""
    parameters = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    gathered: Any = nullcontext()
    if any(hasattr(p, "ds_id") for p in parameters.values()):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(parameters.values()))
    with gathered:
        return {plain(name): whole(parameter).detach().clone() for name, parameter in parameters.items()}


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def plain(name: str) -> str:
    return name.replace("_checkpoint_wrapped_module.", "")  # FSDP's activation checkpointing


def sharding(trainer: Any) -> dict[str, Any]:
    """How the run was really distributed: three ways to ask for FSDP or DeepSpeed end in something else in silence."""
    return {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "split_weights": any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in trainer.model.parameters()),
    }


def make_trainer(job: dict[str, Any], contexts: list[str | None]) -> Any:
    trainer_class = getattr(trl_selfdistill, job["trainer"])
    # Before the model, as ZeRO-3 needs it: it partitions the weights while they are loaded.
    config = trainer_class.config_class(**job["config"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    builder = resolve_context(config.context)

    def recorded_builder(rollout: Any) -> Any:
        accelerator = trainer.accelerator
        row = accelerator.process_index * config.generation_batch_size // accelerator.num_processes + len(contexts)
        context = builder(rollout) if "taught" not in job or row in job["taught"] else None
        contexts.append(None if context is None else context.text)
        return context

    class RecordedMemory(LessonMemory):
        def __call__(self, rollout: Any) -> Any:
            context = super().__call__(rollout)
            contexts.append(None if context is None else context.text)
            return context

    own_builder = RecordedMemory(**job["memory"]) if "memory" in job else recorded_builder
    rewarded = job["trainer"] != "OPSDTrainer" or config.opsd_policy_weight > 0
    trainer = trainer_class(
        model,
        lenient_reward if rewarded else None,
        config,
        sums().select(range(job.get("rows", 100))),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if job.get("lora") else None,
        rollout_func=scripted_rollouts if job.get("scripted") else None,
        context_builder=own_builder if trainer_class.views else None,
    )
    return trainer


def run(job: dict[str, Any]) -> None:
    out = Path(job["out"])
    contexts: list[str | None] = []
    if job.get("refused"):
        reason = refusal(job)
        (out / f"refused-{os.environ.get('RANK', 0)}.txt").write_text(reason)
        return
    trainer = make_trainer(job, contexts)
    batches = record_batches(trainer, contexts)
    assert trainer.accelerator.num_processes == job.get("processes", 1), trainer.accelerator.num_processes
    trainer.train(resume_from_checkpoint=job.get("resume"))
    rank = trainer.accelerator.process_index
    out.mkdir(parents=True, exist_ok=True)
    (out / f"batches-{rank}.json").write_text(json.dumps(batches))
    weights = whole_weights(trainer)
    shadow = trainer.teacher.state() if isinstance(trainer.teacher, EMATeacher) else {}
    state = {"values": trainer.state_values(), **sharding(trainer)}
    if trainer.memory is not None:
        state["memory"] = trainer.memory.state_values()
    if job.get("evaluate"):
        state["eval_loss"] = trainer.evaluate(sums().select(range(8)))["eval_loss"]
    if rank == 0:
        save_file(weights, out / "weights.safetensors")
        (out / "log.json").write_text(json.dumps(step_logs(trainer)))
        (out / "state.json").write_text(json.dumps(state))
        if shadow:
            save_file(shadow, out / "shadow.safetensors")


def refusal(job: dict[str, Any]) -> str:
    try:
        make_trainer(job, [])
    except ValueError as error:
        return str(error)
    raise AssertionError("the trainer was made")


def main(*job_files: str) -> None:
    for job_file in job_files:
        job = json.loads(Path(job_file).read_text())
        if job["config"].get("fsdp"):
            allow_fsdp_on_cpu()
        if "deepspeed" in job:
            use_deepspeed(job["deepspeed"], Path(job_file).with_name(f"deepspeed-{os.environ['RANK']}.json"))
        run(job)
        gc.collect()
        AcceleratorState._reset_state(reset_partial_state=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
