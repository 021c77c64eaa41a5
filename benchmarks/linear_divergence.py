"""Time, memory and gradient error of `linear_divergence` against its peers, forward and backward, as markdown tables.

    python benchmarks/linear_divergence.py                                   # CPU: N=1024, H=576, V=49152, fp32
    python benchmarks/linear_divergence.py --frozen-head --rounds 9
    python benchmarks/linear_divergence.py --device cuda --dtype bfloat16 --model qwen3-8b --tokens 4096 16384 65536

Every variant returns the mean divergence and its gradients; all but Liger's also compute the sampled log-probabilities
and the entropies of both streams. `gemm` is the products alone. Rounds are interleaved, the median counts. On a CPU:
seconds of one thread's CPU time, and the growth of the peak resident set in a fresh process. On CUDA: events and
`max_memory_allocated`.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from divergence_variants import VARIANTS, Problem
from measure import MODELS, NAN, end, growth, last_number_of, medians, product_rate, ratio, tried

from trl_selfdistill.ops import linear_divergence


def step(variant: str, p: Problem, beta: float) -> None:
    p.student.grad = p.weight.grad = None
    out = VARIANTS[variant](p, beta)
    out.backward(out.detach() if variant == "gemm" else None)


def times(a: argparse.Namespace, n: int, beta: float, rounds: int) -> dict[str, float]:
    """Median seconds of each variant; nan where memory does not suffice."""
    p = problem(a, n)
    return medians({v: partial(step, v, p, beta) for v in a.variants}, rounds, a.device)


def memory_of(a: argparse.Namespace, variant: str, n: int, beta: float) -> float:
    """Bytes by which the peak of one step exceeds the level before it. On a CPU: in a process of its own."""
    # Pages of code and the compiler's own memory are not the question.
    step(variant, problem(a, n if variant == "liger_compiled" else 8), beta)
    p = problem(a, n)
    return growth(lambda: step(variant, p, beta), a.device)


def memory(a: argparse.Namespace, variant: str, n: int, beta: float) -> float:
    if a.device == "cuda" or a.model == "toy":  # the toy is there to run the code
        return tried(f"{variant}, memory", lambda: memory_of(a, variant, n, beta))
    child = ["--model", a.model, "--child", json.dumps([variant, n, beta])]
    return last_number_of(__file__, *sys.argv[1:], *child)


def gradient_error(a: argparse.Namespace, variant: str, beta: float) -> float:
    """Relative error of the hidden gradient against float64, 64 tokens whose streams differ by 0.01."""
    p = problem(a, 64, gap=0.01)
    student, teacher, weight = (t.detach().double() for t in (p.student, p.teacher, p.weight))
    exact = Problem(student, teacher, weight, p.targets)
    exact.student.requires_grad_()
    scale = exact.student.new_full((64,), 1 / 64)
    linear_divergence(
        exact.student, exact.teacher, exact.weight, beta=beta, token_weights=scale, impl="torch"
    ).loss.backward()
    step(variant, p, beta)
    assert exact.student.grad is not None and p.student.grad is not None
    return ((p.student.grad.double() - exact.student.grad).norm() / exact.student.grad.norm()).item()


def problem(a: argparse.Namespace, n: int, gap: float = 0.1) -> Problem:
    return Problem.draw(n, *MODELS[a.model], gap, getattr(torch, a.dtype), a.device, a.frozen_head)


def report(a: argparse.Namespace, n: int, beta: float, rate: float) -> list[dict[str, Any]]:
    took = times(a, n, beta, a.rounds)
    held = {v: memory(a, v, n, beta) for v in a.variants}
    width, vocab = MODELS[a.model]
    floor = (6 if a.frozen_head else 8) * n * width * vocab / rate
    print(f"\n{a.model}, N = {n}, H = {width}, V = {vocab}, {a.dtype}, beta = {beta}"
          f"{', frozen head' if a.frozen_head else ''}\n")  # fmt: skip
    print("| variant | seconds | ratio | share of product rate | peak growth, MB | ratio | gradient error |")
    print("|---|---|---|---|---|---|---|")
    where = {"model": a.model, "tokens": n, "dtype": a.dtype, "frozen_head": a.frozen_head, "beta": beta}
    rows = []
    for v in a.variants:
        error = NAN if v == "gemm" else tried(f"{v}, error", lambda v=v: gradient_error(a, v, beta))
        print(f"| {v} | {took[v]:.4f} | {took[v] / took['ours']:.2f} | {floor / took[v]:.0%} | {held[v] / 1e6:.0f} "
              f"| {ratio(held[v], held['ours']):.2f} | {error:.1e} |", flush=True)  # fmt: skip
        found = {"seconds": took[v], "share": floor / took[v], "bytes": held[v], "gradient_error": error}
        rows.append({**where, "variant": v, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", choices=tuple(MODELS), nargs="+", default=["smollm2-135m"], help="sizes of the head")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--beta", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frozen-head", action="store_true")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all rows to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(1)
    models = a.model
    if a.child:
        (a.model,) = models
        print(memory_of(a, *json.loads(a.child)))
        return
    a.variants = list(dict.fromkeys(["ours", *a.variants]))
    rows = []
    for a.model in models:
        p = problem(a, 4096 if a.device == "cuda" else 512)
        rate = product_rate(p.student.detach(), p.weight.detach().T, a.device)
        del p
        print(f"torch {torch.__version__}, {a.device}, {a.model}, head product {rate / 1e9:.0f} GFLOP/s", flush=True)
        for n in a.tokens:
            for beta in a.beta:
                rows += report(a, n, beta, rate)
                if a.json:
                    a.json.write_text(json.dumps(rows, indent=1))
    end()


if __name__ == "__main__":
    main()
