"""Peak memory of one training step of `OPSDTrainer` and of TRL's SDFT in `full_logits` mode, on the same rows.

    OMP_NUM_THREADS=1 python benchmarks/opsd_memory.py            # T = 2048 completion tokens, SmolLM2-135M's shape

Both train LoRA on all linear layers of a policy with random weights, with the base as teacher, the same prompts and
completions, KL(teacher || student) over the full vocabulary and gradient checkpointing. One process each; what is
measured is the growth of the peak resident set (CUDA: of the allocated memory) over a step, after a short warm-up step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from trl_selfdistill import OPSDConfig, OPSDTrainer, Rollout
from trl_selfdistill.trainer.rollouts import Lesson, lesson_tensors

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from tiny_policy import build_tokenizer

PROMPT, TEACHER_PROMPT = 64, 512
VARIANTS = ("ours", "sdft")


def smollm2_shape(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    return LlamaForCausalLM(config).to(dtype)


def trainer_of(variant: str, dtype: torch.dtype) -> Any:
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": 1,
        "num_generations": 1,
        "temperature": 1.0,
    }
    rows = {"prompt": [[{"role": "user", "content": "q"}]], "privileged_context": ["a"]}
    common = {
        "train_dataset": Dataset.from_dict(rows),
        "processing_class": build_tokenizer(),
        "peft_config": LoraConfig(r=16, target_modules="all-linear"),
    }
    if variant == "ours":
        return OPSDTrainer(
            smollm2_shape(dtype), args=OPSDConfig(**settings, opsd_token_clip=None, log_token_signals=0), **common
        )
    mode = {"distillation_mode": "full_logits", "distillation_alpha": 0.0, "distillation_is_clip": None}
    return SDFTTrainer(smollm2_shape(dtype), args=SDFTConfig(**settings, **mode), **common)


def batch_of(variant: str, tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = {
        "prompt": torch.randint(1000, 49000, (1, PROMPT), generator=generator),
        "teacher_prompt": torch.randint(1000, 49000, (1, TEACHER_PROMPT), generator=generator),
        "completion": torch.randint(1000, 49000, (1, tokens), generator=generator),
    }
    batch = {f"{name}_ids": value for name, value in ids.items()}
    batch |= {f"{name}_mask": torch.ones_like(value) for name, value in ids.items()}
    if variant == "ours":
        batch |= {"has_context": torch.tensor([True]), "taught_tokens": torch.tensor(tokens)}
        batch |= lesson_tensors(Lesson([Rollout({}, "", correct=False)], {}, torch.ones(1)), torch.device("cpu"))
    else:
        batch["teacher_input_ids"] = torch.cat([ids["teacher_prompt"], ids["completion"]], dim=1)
        batch["teacher_attention_mask"] = torch.ones_like(batch["teacher_input_ids"])
    return {name: value.to(device) for name, value in batch.items()}


def peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def measure(variant: str, tokens: int, dtype: torch.dtype) -> dict[str, float]:
    trainer = trainer_of(variant, dtype)
    trainer.current_gradient_accumulation_steps = 1
    device = trainer.accelerator.device
    model = trainer.model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss = 0.0
    for length in (64, tokens):  # the first warms up
        batch = batch_of(variant, length, device)
        reset_peak(device)
        before, start = peak(device), time.process_time()
        value = trainer.compute_loss(model, batch)
        value.backward()
        loss = value.item()
        model.zero_grad()
    seconds = time.process_time() - start
    return {"loss": loss, "peak_mb": (peak(device) - before) / 1e6, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results to this file")
    parser.add_argument("--variant", choices=VARIANTS, help="measure one in this process and print it as JSON")
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args.variant, args.tokens, getattr(torch, args.dtype))))
        return
    results = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--variant", variant, "--tokens", str(args.tokens), "--dtype", args.dtype]
        # Freed blocks go back to the system at once, so that the resident set shows what is in use.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        results[variant] = json.loads(done.stdout.splitlines()[-1])
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    print(f"| T = {args.tokens}, {args.dtype} | loss | peak growth, MB | CPU seconds |\n|---|---|---|---|")
    for variant, row in results.items():
        print(f"| {variant} | {row['loss']:.6f} | {row['peak_mb']:.0f} | {row['seconds']:.1f} |")
    print(f"\nsdft / ours, peak growth: {results['sdft']['peak_mb'] / results['ours']['peak_mb']:.2f}")


if __name__ == "__main__":
    main()
