"""The tables of `training_phase.py`, in markdown."""

import statistics
from typing import Any

from trl_selfdistill.cli.flops import Shape


def print_comparison(model: str, kind: str, shape: Shape, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{model}, {kind}, P = {shape.prompt}, C = {shape.context}, T = {shape.completion}, G = {shape.rollouts}\n")
    print("| variant | seconds | ratio | counted | counted, teacher's prompt once | peak growth, MB | ratio |")
    print("|---|---|---|---|---|---|---|")
    for variant, row in rows.items():
        print(
            f"| {variant} | {statistics.median(row['seconds']):.2f} | {row['ratio']:.2f} | {row['counted']:.2f} "
            f"| {row['counted_shared']:.2f} | {row['mb']:.0f} | {row['mb_ratio']:.2f} |"
        )
    parts = ["teacher", "loss", "backward, optimiser, the rest"]
    print("\n| variant |", " | ".join(parts), "|\n" + "|---" * (len(parts) + 1) + "|")
    for variant, row in rows.items():
        if row["shares"]:
            print(f"| {variant} |", " | ".join(f"{row['shares'].get(part, 0.0):.0%}" for part in parts), "|")
    print(flush=True)


def growth_table(rows: dict[str, dict[str, Any]]) -> str:
    sizes = next(iter(rows.values()))["sizes"]
    lines = [f"| variant | {' | '.join(map(str, sizes))} | exponent | counted |", "|---" * (len(sizes) + 3) + "|"]
    for variant, row in rows.items():
        seconds = " | ".join(f"{value:.1f}" for value in row["seconds"])
        lines.append(f"| {variant} | {seconds} | {row['exponent']:.2f} | {row['counted']:.2f} |")
    return "\n".join(lines)


def print_growth(axis: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\nlora, seconds against {axis}\n\n{growth_table(rows)}\n", flush=True)


def share(row: dict[str, Any], part: str) -> str:
    return f"{row['shares'].get(part, 0.0):.0%}"


def summary_tables(results: dict[str, Any]) -> str:
    """LoRA beside full fine-tuning: seconds and peak memory as ratios to GRPO's, and the shares of a step."""
    kinds = {entry["kind"]: entry["variants"] for entry in results["comparison"]}
    lines = ["| | LoRA, seconds | ratio | memory | full, seconds | ratio | memory |", "|---|---|---|---|---|---|---|"]
    for variant in kinds["lora"]:
        cells = []
        for kind in ("lora", "full"):
            row = kinds[kind][variant]
            cells += [f"{statistics.median(row['seconds']):.1f}", f"{row['ratio']:.2f}", f"{row['mb_ratio']:.2f}"]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    parts = ("teacher", "loss", "backward, optimiser, the rest")
    lines += ["", f"| LoRA | {' | '.join(parts)} |", "|---|---|---|---|"]
    for variant, row in kinds["lora"].items():
        if row["shares"]:
            lines.append(f"| {variant} | {' | '.join(share(row, part) for part in parts)} |")
    return "\n".join(lines)


def rounds_table(results: dict[str, Any]) -> str:
    """Each round's ratio to GRPO, their median, and the ratio that counting operations gives."""
    variants = results["comparison"][0]["variants"]
    count = len(variants["grpo"]["seconds"])
    lines = [
        f"| LoRA | {' | '.join(f'round {i + 1}' for i in range(count))} | median | counted | memory |",
        "|---" * (count + 4) + "|",
    ]
    for variant, row in variants.items():
        pairs = zip(row["seconds"], variants["grpo"]["seconds"], strict=True)
        ratios = " | ".join(f"{own / base:.2f}" for own, base in pairs)
        end = f"{row['ratio']:.2f} | {row['counted_shared']:.2f} | {row['mb_ratio']:.2f}"
        lines.append(f"| {variant} | {ratios} | {end} |")
    return "\n".join(lines)


def spread_sentence(lora: dict[str, Any]) -> str:
    variants = lora["comparison"][0]["variants"]
    grpo = variants["grpo"]["seconds"]
    ratios = {
        name: [ours / theirs for ours, theirs in zip(variants[name]["seconds"], grpo, strict=True)]
        for name in ("rlrt", "rlrt-skip")
    }
    return (
        f"Over the rounds, RLRT took {min(ratios['rlrt']):.2f} to {max(ratios['rlrt']):.2f} of GRPO's time, "
        f"{statistics.median(ratios['rlrt']):.2f} in the median, and {statistics.median(ratios['rlrt-skip']):.2f} with "
        "`skip_unused_scores`."
    )


def third_sentence(third: dict[str, Any]) -> str:
    variants = third["comparison"][0]["variants"]
    ours, grpo = variants["rlrt"], variants["grpo"]
    return (
        f"At P = 256, C = 1024, T = 1024 one round gave {ours['ratio']:.2f} for RLRT "
        f"({ours['seconds'][0]:.0f} s where GRPO took {grpo['seconds'][0]:.0f};\n"
        f"counted: {ours['counted_shared']:.2f}), with {ours['mb_ratio']:.2f} of GRPO's memory "
        "(`benchmarks/results/training_phase_third.json`)."
    )
