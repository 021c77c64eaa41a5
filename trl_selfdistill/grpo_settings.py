"""Settings of GRPO that would do nothing under this package's losses, or would silently make another algorithm.

They are refused before anything is loaded. Field by field: `docs/grpo_settings.md`.
"""

import warnings
from typing import Any

from trl_selfdistill.settings import changed_settings

KEEPS_TOKEN_CREDIT = ("cispo", "vespo")
"""Losses in which a token's advantage weighs that token's own gradient, whatever `importance_sampling_level` is."""

POLICY_LOSS_FIELDS = (
    "beta",
    "delta",
    "entropy_coef",
    "entropy_coef_delta",
    "entropy_coef_max",
    "entropy_coef_min",
    "entropy_target",
    "epsilon",
    "epsilon_high",
    "importance_sampling_level",
    "loss_type",
    "multi_objective_aggregation",
    "off_policy_mask_threshold",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "scale_rewards",
    "sync_ref_model",
    "top_entropy_quantile",
    "use_adaptive_entropy",
    "use_bias_correction_kl",
    "vespo_k_neg",
    "vespo_k_pos",
    "vespo_lambda_neg",
    "vespo_lambda_pos",
    "vllm_importance_sampling_cap",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_mode",
)
"""Fields of `GRPOConfig` that act on GRPO's loss, or on the advantages in it, and on nothing else that is trained."""


def check_token_signal(args: Any, *, keeps_sign: bool, gated: bool = False) -> None:
    """Refuse what an algorithm with one advantage per token cannot have.

    Args:
        args: the configuration.
        keeps_sign: whether a token's advantage always has the sign of its rollout's, or is 0.
        gated: whether the algorithm has a gate, which steps once per generation batch. It brings a warning where that
            is more than once per optimiser step.

    Raises `ValueError` where only the sum of a row's token advantages would reach the gradient, and where TRL would ask
    a token's sign what it asks a rollout's sign under GRPO.
    """
    if args.importance_sampling_level == "sequence" and args.loss_type not in KEEPS_TOKEN_CREDIT:
        raise ValueError(
            f"importance_sampling_level='sequence' with loss_type={args.loss_type!r} multiplies a whole rollout by one "
            "ratio: only the sum of its token advantages would reach the gradient, and the teacher's opinion of each "
            "token would be lost. Set importance_sampling_level='token', or loss_type='cispo' or 'vespo'."
        )
    if args.off_policy_mask_threshold is not None and not keeps_sign:
        raise ValueError(
            f"off_policy_mask_threshold={args.off_policy_mask_threshold} masks rollouts whose advantage is negative. "
            "This algorithm gives tokens advantages of another sign than their rollout's, so that TRL would mask "
            "single tokens. Set off_policy_mask_threshold=None."
        )
    if gated:
        warn_of_several_gate_steps(args)


def warn_of_several_gate_steps(args: Any) -> None:
    """Warn where a gate that steps once per generation batch steps more than once per optimiser step."""
    per_batch = args.steps_per_generation * args.num_iterations
    if per_batch < args.gradient_accumulation_steps:
        warnings.warn(
            f"The gate steps once per generation batch. One such batch lasts steps_per_generation * num_iterations = "
            f"{per_batch} of gradient_accumulation_steps={args.gradient_accumulation_steps} micro-batches: the gate "
            "steps several times per optimiser step, on smaller batches. Set "
            f"steps_per_generation={args.gradient_accumulation_steps} for one.",
            stacklevel=2,
        )


def check_no_policy_loss(args: Any, *, way_out: str) -> None:
    """Refuse each field that acts on GRPO's loss alone, for an algorithm that trains without that loss.

    Args:
        args: the configuration.
        way_out: what to set in order to train with GRPO's loss, for the message.

    Raises `ValueError` that names all fields that are not at `GRPOConfig`'s default.
    """
    given, kept = changed_settings(args, (*POLICY_LOSS_FIELDS, "policy_logps"))
    if given:
        raise ValueError(
            f"{given}: this acts on GRPO's loss, which the divergence replaces, and would do nothing. Set {kept} (the "
            f"default), or {way_out}."
        )
