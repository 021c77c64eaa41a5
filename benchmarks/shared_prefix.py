"""Seconds of the teacher's scoring with each prompt encoded once, and row by row; and how far the two results differ.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/shared_prefix.py
    python benchmarks/shared_prefix.py --device cuda --dtype bfloat16

One group of G rollouts with one teacher prompt of P tokens and completions of T tokens, on a model with SmolLM2-135M's
shape and random weights. Rounds are interleaved, the median counts. CPU: process time of one thread.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import torch
from measure import medians
from phase_variants import model_of, trainer_of

from trl_selfdistill.cli.flops import Shape
from trl_selfdistill.trainer.scorer import completion_logps


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--completion", type=int, default=256)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results to this file")
    parser.add_argument("--toy", action="store_true", help="a model of a few weights, to try the script")
    a = parser.parse_args(given)
    a.checkpointing, a.model = True, "smollm2"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(a, "rlrt", "lora", Shape(8, 8, a.completion, a.rollouts), folder)
    draw = torch.Generator().manual_seed(0)
    vocab = model_of(a).config.vocab_size
    prompt = torch.randint(5, vocab, (1, a.prompt), generator=draw).expand(a.rollouts, -1).to(a.device)
    ids = torch.randint(5, vocab, (a.rollouts, a.completion), generator=draw).to(a.device)
    batch = {"completion_ids": ids, "completion_mask": torch.ones_like(ids)}
    rows = torch.ones(a.rollouts, dtype=torch.bool, device=a.device)

    def score(shared: bool) -> torch.Tensor:
        trainer.shares_prefix = shared
        return completion_logps(trainer, trainer.teacher, batch, prompt, torch.ones_like(prompt), rows)[0]

    took = medians({"once": lambda: score(True), "row by row": lambda: score(False)}, a.rounds, a.device)
    difference = (score(True) - score(False)).abs().max().item()
    print(f"P = {a.prompt}, T = {a.completion}, G = {a.rollouts}, {a.dtype}, {a.device}")
    print("| each prompt | seconds | ratio |\n|---|---|---|")
    for name, value in took.items():
        print(f"| {name} | {value:.2f} | {value / took['row by row']:.2f} |")
    print(f"largest difference of a log-probability: {difference:.1e}")
    if a.json:
        sizes = {"prompt": a.prompt, "completion": a.completion, "rollouts": a.rollouts, "dtype": a.dtype}
        a.json.write_text(json.dumps({**sizes, "seconds": took, "difference": difference}, indent=1))


if __name__ == "__main__":
    main()
