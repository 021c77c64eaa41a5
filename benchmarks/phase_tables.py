"""The tables of `training_phase.py`, in markdown."""

import statistics
from typing import Any

from trl_selfdistill.cli.flops import Shape


def print_comparison(kind: str, shape: Shape, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{kind}, P = {shape.prompt}, C = {shape.context}, T = {shape.completion}, G = {shape.rollouts}\n")
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


def print_growth(axis: str, rows: dict[str, dict[str, Any]]) -> None:
    sizes = next(iter(rows.values()))["sizes"]
    print(f"\nlora, seconds against {axis}\n")
    print("| variant |", " | ".join(map(str, sizes)), "| exponent | counted |")
    print("|---" * (len(sizes) + 3) + "|")
    for variant, row in rows.items():
        seconds = " | ".join(f"{value:.2f}" for value in row["seconds"])
        print(f"| {variant} | {seconds} | {row['exponent']:.2f} | {row['counted']:.2f} |")
    print(flush=True)
