"""Time, memory and error of `linear_logps` with gradients against its peers, forward and backward, as markdown tables.

    python benchmarks/linear_logps.py                                        # CPU: N=1024, H=576, V=49152, fp32
    python benchmarks/linear_logps.py --frozen-head --rounds 9
    python benchmarks/linear_logps.py --device cuda --dtype bfloat16 --model qwen3-8b --tokens 4096 16384 65536

The loss is the weighted sum of the sampled tokens' log-probabilities, as in a policy gradient, plus 0.01 times the
entropies with `--entropy`; without, each variant computes the entropy as a metric, but for Liger's cross-entropy, which
has none and needs a GPU. `gemm` is the products alone. How times and memory are taken: `linear_divergence.py`.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from divergence_variants import Problem
from measure import MODELS, NAN, end, growth, last_number_of, medians, product_rate, ratio, tried
from torch import Tensor

from trl_selfdistill.ops import linear_logps

Outputs = tuple[Tensor, Tensor]  # log-probabilities and entropies, (N,) each


def ours(p: Problem, entropy: bool) -> Outputs:
    return linear_logps(p.student, p.weight, p.targets, entropy_grad=entropy)


def naive(p: Problem, entropy: bool) -> Outputs:
    log_probs = F.linear(p.student, p.weight).float().log_softmax(-1)
    with torch.set_grad_enabled(entropy):
        entropies = -torch.linalg.vecdot(log_probs.exp(), log_probs)
    return log_probs.gather(1, p.targets[:, None])[:, 0], entropies


def trl(p: Problem, entropy: bool) -> Outputs:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(p.student, p.weight, None, p.targets, 1.0, 32768, None, 1.0, ("entropy",))[:2]


def liger(p: Problem, entropy: bool) -> Outputs:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    losses = LigerFusedLinearCrossEntropyFunction.apply(
        p.student, p.weight, p.targets, None, None, -100, 0.0, 0.0, "none"
    )[0]
    return -losses, torch.zeros_like(losses)


VARIANTS: dict[str, Callable[[Problem, bool], Outputs]] = {f.__name__: f for f in (ours, naive, trl, liger)}
CHOICES = ("ours", "gemm", "naive", "trl", "liger")


def products(p: Problem) -> None:
    """The logits and the way back from them, of no use but as a ceiling."""
    p.student.grad = p.weight.grad = None
    logits = F.linear(p.student, p.weight)
    logits.backward(logits.detach())


def run(variant: str, p: Problem, entropy: bool) -> None:
    if variant == "gemm":
        products(p)
    else:
        step(variant, p, entropy)


def step(variant: str, p: Problem, entropy: bool) -> Outputs:
    p.student.grad = p.weight.grad = None
    logps, entropies = VARIANTS[variant](p, entropy)
    advantages = torch.linspace(-1.0, 1.0, len(logps), device=logps.device) / len(logps)
    loss = (advantages * logps).sum()
    (loss + 0.01 * entropies.mean() if entropy else loss).backward()
    return logps.detach(), entropies.detach()


def problem(a: argparse.Namespace, n: int) -> Problem:
    return Problem.draw(n, *MODELS[a.model], 0.0, getattr(torch, a.dtype), a.device, a.frozen_head)


def memory_of(a: argparse.Namespace, variant: str, n: int) -> float:
    run(variant, problem(a, 8), a.entropy)  # pages of code are not the question
    p = problem(a, n)
    return growth(lambda: run(variant, p, a.entropy), a.device)


def memory(a: argparse.Namespace, variant: str, n: int) -> float:
    if a.device == "cuda" or a.model == "toy":  # the toy is there to run the code
        return tried(f"{variant}, memory", lambda: memory_of(a, variant, n))
    child = ["--model", a.model, *["--frozen-head"] * a.frozen_head, "--child", json.dumps([variant, n])]
    return last_number_of(__file__, *sys.argv[1:], *child)


def errors(a: argparse.Namespace, variant: str) -> dict[str, float]:
    """Mean error of a log-probability, and relative error of the hidden gradient, against float64, 64 tokens."""
    p = problem(a, 64)
    exact = Problem(*(t.detach().double() for t in (p.student, p.teacher, p.weight)), p.targets)
    exact.student.requires_grad_()
    expected, _ = step("ours", exact, a.entropy)
    logps, _ = step(variant, p, a.entropy)
    assert exact.student.grad is not None and p.student.grad is not None
    difference = p.student.grad.double() - exact.student.grad
    gradient = difference.norm() / exact.student.grad.norm()
    return {"logps_error": (logps - expected).abs().mean().item(), "gradient_error": gradient.item()}


def report(a: argparse.Namespace, n: int, rate: float) -> list[dict[str, Any]]:
    p = problem(a, n)
    took = medians({v: partial(run, v, p, a.entropy) for v in a.variants}, a.rounds, a.device)
    del p
    held = {v: memory(a, v, n) for v in a.variants}
    width, vocab = MODELS[a.model]
    operations = (4 + 2 * a.entropy if a.frozen_head else 8) * n * width * vocab
    head = "frozen" if a.frozen_head else "trainable"
    loss = ", entropy in the loss" if a.entropy else ""
    print(f"\n{a.model}, N = {n}, H = {width}, V = {vocab}, {a.dtype}, {head} head{loss}\n")
    print("| variant | seconds | ratio | share | peak growth, MB | ratio | log-prob error | gradient error |")
    print("|---|---|---|---|---|---|---|---|")
    where = {"model": a.model, "tokens": n, "dtype": a.dtype, "frozen_head": a.frozen_head, "entropy": a.entropy}
    rows = []
    for v in a.variants:
        error = {"logps_error": NAN, "gradient_error": NAN}
        if v != "gemm":
            tried(f"{v}, error", lambda v=v, error=error: error.update(errors(a, v)) or 0.0)
        print(f"| {v} | {took[v]:.4f} | {took[v] / took['ours']:.2f} | {operations / rate / took[v]:.0%} "
              f"| {held[v] / 1e6:.0f} | {ratio(held[v], held['ours']):.2f} | {error['logps_error']:.1e} "
              f"| {error['gradient_error']:.1e} |", flush=True)  # fmt: skip
        share = operations / rate / took[v]
        rows.append({**where, "variant": v, "seconds": took[v], "share": share, "bytes": held[v], **error})
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", choices=tuple(MODELS), nargs="+", default=["smollm2-135m"], help="sizes of the head")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frozen-head", action="store_true")
    parser.add_argument("--both-heads", action="store_true", help="trainable, then frozen")
    parser.add_argument("--entropy", action="store_true", help="the entropy is part of the loss")
    parser.add_argument("--variants", nargs="+", choices=CHOICES, help="all that can run")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all rows to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    without_liger = "on a CPU" if a.device == "cpu" else "with --entropy" if a.entropy else ""
    if without_liger and "liger" in (a.variants or ()):
        parser.error(f"Liger's cross-entropy cannot run {without_liger}.")
    variants = a.variants or [v for v in CHOICES if v != "liger" or not without_liger]
    a.variants = list(dict.fromkeys(["ours", *variants]))
    return a


def main() -> None:
    a = arguments()
    torch.set_num_threads(1)
    models, heads = a.model, (False, True) if a.both_heads else (a.frozen_head,)
    if a.child:
        (a.model,) = models
        print(memory_of(a, *json.loads(a.child)))
        return
    rows = []
    for a.model in models:
        p = problem(a, 4096 if a.device == "cuda" else 512)
        rate = product_rate(p.student.detach(), p.weight.detach().T, a.device)
        del p
        print(f"torch {torch.__version__}, {a.device}, {a.model}, head product {rate / 1e9:.0f} GFLOP/s", flush=True)
        for n, frozen in itertools.product(a.tokens, heads):
            a.frozen_head = frozen
            rows += report(a, n, rate)
            if a.json:
                a.json.write_text(json.dumps(rows, indent=1))
    end()


if __name__ == "__main__":
    main()
