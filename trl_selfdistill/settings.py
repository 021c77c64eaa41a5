"""Checks on the values of a configuration, as pure functions: what cannot work is refused before anything is loaded."""

import logging
import types
import warnings
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from typing import Any, Union, get_args, get_origin

from trl_selfdistill.context.builders import NEEDS_GROUP, resolve_context, resolve_function
from trl_selfdistill.context.templates import check_template
from trl_selfdistill.record.health import ACTIONS, thresholds_of

logger = logging.getLogger("trl_selfdistill")

TEACHER_KINDS = ("live", "base", "ema")
ROW_WEIGHTS = ("none", "paced")
SAMPLER_ACTIONS = ("warn", "stop", "ignore")
RECORDED = 8
"""Completions whose tokens are recorded at each logging step by default."""


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ValueError` unless `low <= value <= high`."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} must be between {low} and {high}.")


def recorded_completions(value: Any, *, published: bool) -> Any:
    """`log_token_signals` as a number: -1 for all, 0 for none. Nobody's solutions are published unasked."""
    if value is None:
        return 0 if published else RECORDED
    if isinstance(value, bool):
        return -1 if value else 0
    if isinstance(value, int) and value < -1:
        raise ValueError(f"log_token_signals={value} must be a number of completions, 0 for none or -1 for all.")
    return value


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


def check_values(args: Any) -> None:
    """Raise `ValueError` for values that do not exist, or that cannot be had together."""
    check_context(args)
    check_row_weight(args)
    check_teacher(args)
    check_scoring(args)
    check_health(args)


def check_context(args: Any) -> None:
    """Raise `ValueError` for a `context` that cannot be had from these rollouts."""
    if args.context_placement not in ("user", "system"):
        raise ValueError(f"context_placement={args.context_placement!r} must be 'user' or 'system'.")
    if args.teacher_template is not None:
        check_template(args.teacher_template, args.context_placement)
    if args.max_context_tokens is not None and args.max_context_tokens < 1:
        raise ValueError(f"max_context_tokens={args.max_context_tokens} must be at least 1, or None for no limit.")
    if args.context_thinking not in ("keep", "remove"):
        raise ValueError(f"context_thinking={args.context_thinking!r} must be 'keep' or 'remove'.")
    resolve_context(args.context)
    if args.context in NEEDS_GROUP and args.num_generations == 1:
        raise ValueError(
            f"context={args.context!r} shows the teacher another rollout of the prompt, but num_generations=1 makes "
            "none. Set num_generations to at least 2, or context='gold'."
        )
    # An algorithm whose own default is "none" asks no teacher.
    asks_itself = args.context == "none" != type(args).context and args.teacher_model_kind == "live"
    if asks_itself and args.teacher_chat_template_kwargs in (None, args.chat_template_kwargs):
        logger.warning(
            "context='none' with teacher_model_kind='live' asks the policy what it thinks of itself: the signal is 0. "
            "As a control, give the teacher other weights (teacher_model_kind) or other teacher_chat_template_kwargs."
        )
    if args.context == "other_gold" and args.generation_batch_size <= args.num_generations:
        raise ValueError(
            "context='other_gold' shows the teacher the solution of another problem of the batch, but "
            f"generation_batch_size={args.generation_batch_size} with num_generations={args.num_generations} has one "
            "problem per batch. Make the batch larger."
        )


def check_row_weight(args: Any) -> None:
    """Raise `ValueError` for a `row_weight` that nobody knows, or that these rollouts cannot have."""
    if args.row_weight == "paced" and args.num_generations == 1:
        raise ValueError(
            "row_weight='paced' weighs a prompt by the share of its rollouts that are correct, but num_generations=1 "
            "makes one. Set num_generations to at least 2, or row_weight='none'."
        )
    if args.row_weight not in ROW_WEIGHTS:
        resolve_function(args.row_weight, field="row_weight", names=list(ROW_WEIGHTS))


def default_of(field: Field) -> Any:
    """The default of a dataclass field, made anew where it has a factory."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def changed_settings(args: Any, names: Iterable[str]) -> tuple[str, str]:
    """(those of the fields `names` that are not at the default of their class, those defaults), for a message."""
    defaults = {f.name: default_of(f) for f in fields(args) if f.name in names}
    changed = [name for name, default in defaults.items() if getattr(args, name) != default]
    given = ", ".join(f"{name}={getattr(args, name)!r}" for name in changed)
    return given, ", ".join(f"{name}={defaults[name]!r}" for name in changed)


def check_teacher(args: Any) -> None:
    """Raise `ValueError` for a teacher that does not exist."""
    if args.teacher_model_kind not in TEACHER_KINDS:
        raise ValueError(f"teacher_model_kind={args.teacher_model_kind!r} must be one of {list(TEACHER_KINDS)}.")
    in_range("teacher_update_rate", args.teacher_update_rate, 0.0, 1.0)
    if args.teacher_sync_steps < 1:
        raise ValueError(f"teacher_sync_steps={args.teacher_sync_steps} must be at least 1.")
    if args.teacher_ema_dtype not in ("float32", "bfloat16"):
        raise ValueError(f"teacher_ema_dtype={args.teacher_ema_dtype!r} must be 'float32' or 'bfloat16'.")


def check_scoring(args: Any) -> None:
    """Raise `ValueError` for a source of log-probabilities, or a check of the sampler, that does not exist."""
    if args.policy_logps not in ("fused", "trl"):
        raise ValueError(f"policy_logps={args.policy_logps!r} must be 'fused' or 'trl'.")
    if args.sampler_mismatch not in SAMPLER_ACTIONS:
        raise ValueError(f"sampler_mismatch={args.sampler_mismatch!r} must be one of {list(SAMPLER_ACTIONS)}.")
    if not args.sampler_mismatch_threshold > 0.0:
        raise ValueError(
            f"sampler_mismatch_threshold={args.sampler_mismatch_threshold} must be positive: no two engines agree to "
            "the last digit. Set sampler_mismatch='ignore' to switch the check off."
        )


def check_health(args: Any) -> None:
    """Raise `ValueError` for a health check, a threshold or an action that does not exist."""
    if args.health_action not in ACTIONS:
        raise ValueError(f"health_action={args.health_action!r} must be one of {list(ACTIONS)}.")
    if isinstance(args.health_thresholds, str):
        raise ValueError(
            f"health_thresholds={args.health_thresholds!r} is no mapping. Write it as JSON: '{{\"no_teacher\": 20}}'."
        )
    thresholds_of(args.health_thresholds)


def check_types(args: Any, own: Iterable[Field]) -> None:
    """Raise `ValueError` for a value of another type than its field's: the string "0.5" is no number."""
    kinds = {name: kind for cls in reversed(type(args).__mro__) for name, kind in get_annotations(cls).items()}
    for field in own:
        value, kind = getattr(args, field.name), kinds[field.name]  # argument parsers overwrite `field.type`
        if not _is_a(value, kind):
            hint = " Pass functions as context_builder." if field.name == "context" and callable(value) else ""
            raise ValueError(f"{field.name}={value!r} must be {_words(kind)}, not {type(value).__name__}.{hint}")


def _is_a(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) in (Union, types.UnionType):
        return any(_is_a(value, part) for part in get_args(kind))
    kind = get_origin(kind) or kind
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    names = {float: "a number", int: "a whole number", str: "a string", bool: "True or False", type(None): "None"}
    return " or ".join(names.get(part, getattr(part, "__name__", str(part))) for part in parts)
