"""Train with a real vLLM, in a process of its own: `python run_vllm.py job.json...`. See `run` for a job."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from helpers import exact_reward, step_logs, sums, watch_signals
from peft import LoraConfig
from safetensors.torch import save_file
from tiny_policy import accuracy
from torch.func import functional_call
from transformers import TrainerCallback
from vllm_shims import sync_on_a_cpu

import trl_selfdistill
from trl_selfdistill.teachers.ema import EMATeacher
from trl_selfdistill.trainer.sampler_check import SamplerMismatchError


class Start(TrainerCallback):
    """What a run begins with, after the checkpoint was read: into the job's folder."""

    def __init__(self, trainer: Any, out: Path) -> None:
        self.trainer, self.out = trainer, out

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        trainer = self.trainer
        save_file({k: v.detach().clone() for k, v in trainer.model.named_parameters()}, self.out / "start.safetensors")
        if isinstance(trainer.teacher, EMATeacher):
            save_file(trainer.teacher.state(), self.out / "start-teacher.safetensors")
        steps = {int(values["step"]) for values in optimizer.state.values()}
        start = {"step": state.global_step, "optimizer_steps": sorted(steps), "values": trainer.state_values()}
        (self.out / "start.json").write_text(json.dumps(start))


class Kill(TrainerCallback):
    """A power cut."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@torch.no_grad()
def plain_logps(trainer: Any, weights: Any, prompt_ids: Any, prompt_mask: Any, batch: Any) -> torch.Tensor:
    """Of the completions, by transformers' own forward, with `weights` in place of the policy's."""
    ids = torch.cat([prompt_ids, batch.completion_ids], dim=1)
    mask = torch.cat([prompt_mask, batch.completion_mask], dim=1)
    out = functional_call(trainer.model, weights, kwargs={"input_ids": ids, "attention_mask": mask})
    logits = out.logits[:, prompt_ids.size(1) - 1 : -1].float()
    logps = (logits / trainer.temperature).log_softmax(-1)
    return logps.gather(-1, batch.completion_ids.unsqueeze(-1)).squeeze(-1)


def compare(trainer: Any, batch: Any) -> dict[str, float]:
    """The largest distances of a batch's scores from plain forwards of policy and teacher, and from vLLM's own."""
    scores, mask, prompts = batch.scores, batch.scores.mask, batch.teacher
    average = trainer.teacher.state() if isinstance(trainer.teacher, EMATeacher) else {}
    student = plain_logps(trainer, {}, batch.prompt_ids, batch.prompt_mask, batch)
    teacher = plain_logps(trainer, average, prompts["teacher_prompt_ids"], prompts["teacher_prompt_mask"], batch)
    return {
        "student": (scores.student_logps - student)[mask].abs().max().item(),
        "teacher": (scores.teacher_logps - teacher)[mask].abs().max().item(),
        "sampler": (scores.student_logps - batch.sampling_per_token_logps)[mask].abs().max().item(),
    }


def watch(trainer: Any) -> list[dict[str, float]]:
    """`compare` of every batch, before the policy moves."""
    found: list[dict[str, float]] = []
    seen, loss = watch_signals(trainer), trainer.batch_loss

    def watched(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        try:
            return loss(model, inputs)
        finally:  # also of a batch that ends the run
            found.extend(compare(trainer, batch) for batch in seen)
            seen.clear()

    trainer.batch_loss = watched
    return found


def run(job_file: str) -> None:
    """A job: `trainer`, `model` (a folder), `config`; and, where wanted, `lora`, `resume`, `kill` (after that step),
    `syncs` (after so many of them vLLM's weights are stale). What it found is left in the job's folder.
    """
    out, job = Path(job_file).parent, json.loads(Path(job_file).read_text())
    sync_on_a_cpu(syncs=job.get("syncs"))
    trainer_class = getattr(trl_selfdistill, job["trainer"])
    config = trainer_class.config_class(**job["config"])
    lora = LoraConfig(r=8, target_modules="all-linear") if job.get("lora") else None
    rewards = None if job["trainer"] == "OPSDTrainer" else exact_reward
    trainer = trainer_class(job["model"], rewards, config, sums(repeat=20), peft_config=lora)
    trainer.add_callback(Start(trainer, out))
    if "kill" in job:
        trainer.add_callback(Kill(job["kill"]))
    scores, stopped = watch(trainer), None
    try:
        trainer.train(resume_from_checkpoint=job.get("resume"))
    except SamplerMismatchError as error:
        stopped = str(error)
    after = accuracy(trainer.model, trainer.processing_class)
    result = {"log": step_logs(trainer), "scores": scores, "accuracy": after, "stopped": stopped}
    (out / "result.json").write_text(json.dumps({**result, "step": trainer.state.global_step}))


def main(*job_files: str) -> None:
    for job_file in job_files:
        run(job_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
