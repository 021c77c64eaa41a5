"""The tables of `gpu.py`, as they stand in `benchmarks/README.md`, where all that is missing is "not measured"."""

import itertools
from typing import Any

MODELS = ("qwen3-1.7b", "qwen3-8b")
TOKENS = (4096, 8192, 16384)
BETAS = (0.0, 0.5)
DIVERGENCE = ("ours", "gemm", "naive", "trl", "liger", "liger_compiled")
LOGPS = ("ours", "gemm", "naive", "trl", "liger")
PHASE_MODELS = ("smollm2", "qwen3-1.7b")
PHASE = ("grpo", "rlrt", "antisd", "opsd", "trl-sdpo-full", "trl-sdft-full")


def tables(parts: dict[str, Any]) -> list[str]:
    """Lines of markdown. `parts`: by name, as in the JSON file of `gpu.py`."""

    def results(name: str) -> list[dict[str, Any]]:
        return parts.get(name, {}).get("results") or []

    # Of the compiled part, `ours` is there for its ratio only.
    divergence = results("divergence") + [r for r in results("compiled") if r["variant"] != "ours"]
    lines = [*head("`linear_divergence`", ("model", "N", "beta", *DIVERGENCE))]
    for model, n, beta in itertools.product(MODELS, TOKENS, BETAS):
        found = {r["variant"]: r for r in divergence if (r["model"], r["tokens"], r["beta"]) == (model, n, beta)}
        lines.append(row(model, n, beta, *(op_cell(found.get(v)) for v in DIVERGENCE)))
    lines += head("`linear_logps`", ("model", "N", "head", *LOGPS))
    for model, n, frozen in itertools.product(MODELS, TOKENS, (False, True)):
        wanted = (model, n, frozen)
        found = {r["variant"]: r for r in results("logps") if (r["model"], r["tokens"], r["frozen_head"]) == wanted}
        lines.append(row(model, n, "frozen" if frozen else "trainable", *(op_cell(found.get(v)) for v in LOGPS)))
    lines += head("Training phase", ("model", *PHASE))
    comparison = (parts.get("phase", {}).get("results") or {}).get("comparison", [])
    for model in PHASE_MODELS:
        found = next((c["variants"] for c in comparison if c["model"] == model), {})
        lines.append(row(model, *(phase_cell(found.get(v)) for v in PHASE)))
    return lines


def head(title: str, columns: tuple[str, ...]) -> list[str]:
    return ["", f"{title}:", "", row(*columns), "|" + "---|" * len(columns)]


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def op_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    return cell(found["seconds"], found["bytes"], 1e3, "ms")


def phase_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    seconds = [s for s in found["seconds"] if s is not None]
    # The middle one of the rounds.
    return cell(
        sorted(seconds)[len(seconds) // 2] if seconds else None,
        None if found["mb"] is None else found["mb"] * 1e6,
        1,
        "s",
    )


def cell(seconds: float | None, size: float | None, scale: float, unit: str) -> str:
    """ "no result" where memory did not suffice, or where the variant raised: the output says which."""
    if seconds is None:
        return "no result"
    return f"{seconds * scale:.2f} {unit}" + ("" if size is None else f", {size / 1e9:.1f} GB")
