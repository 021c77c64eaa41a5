"""Checks on the values of a configuration, as pure functions: what cannot work is refused before anything is loaded."""

import warnings
from typing import Any


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ValueError` unless `low <= value <= high`."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} must be between {low} and {high}.")


def warn_of_saves_inside_a_batch(args: Any) -> None:
    """Warn where `args` (a `GRPOConfig`) saves while rollouts are left to train on: TRL draws new ones on resume."""
    batch = args.steps_per_generation * args.num_iterations
    is_inside = args.save_steps >= 1 and args.save_steps * args.gradient_accumulation_steps % batch
    if args.save_strategy == "steps" and is_inside:
        warnings.warn(
            f"save_steps={args.save_steps} saves inside a batch of rollouts, and TRL draws new ones on resume: the run "
            "will not go on exactly where it stopped. Make save_steps * gradient_accumulation_steps a multiple of "
            f"steps_per_generation * num_iterations = {batch}.",
            stacklevel=2,
        )
