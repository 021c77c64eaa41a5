"""What every trainer promises, as functions that raise `AssertionError` where it does not hold.

`test_contract.py` calls them for every trainer that the package exports, so a new algorithm gets all of it for nothing.
"""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from helpers import (
    HINT_TEMPLATE,
    assert_same_state,
    build,
    distill_settings,
    settings,
    state_of,
    step_logs,
    sums,
    watch_signals,
)
from trl import GRPOConfig, GRPOTrainer

import trl_selfdistill
from trl_selfdistill.teacher_config import ONLY_TEACHERS
from trl_selfdistill.trainer import DivergenceTrainer

# What an algorithm needs to be seen at work in six steps. Most need nothing.
SETTINGS: dict[str, dict[str, Any]] = {
    "AntiSDTrainer": {"antisd_warmup": 2, "context": "gold"},
    "RLCSDTrainer": {"rlcsd_temperature": 0.5},  # the default of 0.02 multiplies the rounding of float32 by 25
}


def trainers() -> dict[str, type]:
    """Every trainer that the package exports."""
    return {name: getattr(trl_selfdistill, name) for name in trl_selfdistill.__all__ if name.endswith("Trainer")}


def own_settings(trainer: type) -> dict[str, Any]:
    return read_by(trainer, {"context": "gold", "num_generations": 4, **SETTINGS.get(trainer.__name__, {})})


def read_by(trainer: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The settings `given` without those of a teacher, where the trainer asks none and would refuse them."""
    return {name: value for name, value in given.items() if trainer.views or name not in ONLY_TEACHERS}


def teachers_of(trainer: Any) -> tuple[str, ...]:
    """The kinds of teacher to be tried; the default alone where none is asked."""
    return ("live", "base", "ema") if trainer.views else ("live",)


def make(trainer: Any, model: Path, tokenizer: Any, folder: Path, *, data: Any = None, **config: Any) -> Any:
    given = distill_settings(folder, **{**own_settings(trainer), **config})
    args = trainer.config_class(**read_by(trainer, given))
    return build(trainer, args, str(model), tokenizer, **(data or {}))


def strength_fields(trainer: Any) -> list[str]:
    return [f.name for f in fields(trainer.config_class) if f.name.endswith("_strength")]


def trains_with_finite_metrics(trainer: Any, model: Path, tokenizer: Any, folder: Path) -> None:
    made = make(trainer, model, tokenizer, folder)
    before = state_of(made.model)
    made.train()
    after = state_of(made.model)
    assert any(not torch.equal(before[name], after[name]) for name in before), "the policy did not move"
    for entry in made.state.log_history:
        wrong = {k: v for k, v in entry.items() if not isinstance(v, int | float) or not math.isfinite(v)}
        assert not wrong, f"metrics that are no finite numbers: {wrong}"
    assert any("self_distill/log_ratio" in entry for entry in made.state.log_history) or not trainer.views


def takes_plain_text(trainer: Any, model: Path, tokenizer: Any, folder: Path) -> None:
    from datasets import Dataset

    rows = [{"prompt": f"{i}+1=", "solution": str(i + 1)} for i in range(8)]
    data = {"train_dataset": Dataset.from_list(rows)}
    make(trainer, model, tokenizer, folder, teacher_template=None, data=data).train()


def resumes_to_the_unbroken_run(trainer: Any, model: Path, tokenizer: Any, folder: Path) -> None:
    """The checkpoint lies inside the second of three epochs, and each epoch has an order of its own."""
    common: dict[str, Any] = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "lr_scheduler_type": "constant",
    }
    common["data"] = {"train_dataset": sums().select(range(4, 44, 10))}  # two prompts make a step
    whole = make(trainer, model, tokenizer, folder / "whole", **common)
    whole.train()
    assert whole.state.epoch == 3.0
    resumed = make(trainer, model, tokenizer, folder / "resumed", **common)
    resumed.train(resume_from_checkpoint=str(folder / "whole/checkpoint-3"))
    assert_same_state(state_of(whole.model), state_of(resumed.model))
    assert whole.state_values() == resumed.state_values()
    for mine, theirs in zip(step_logs(whole)[3:], step_logs(resumed)[3:], strict=True):
        assert mine == theirs


def equal_prompts_have_no_effect(trainer: Any, model: Path, tokenizer: Any, folder: Path) -> None:
    """A teacher with the student's weights and prompt agrees with it."""
    made = make(trainer, model, tokenizer, folder, context="none", teacher_model_kind="live", max_steps=1)
    seen = watch_signals(made)
    made.train()
    assert all(batch.scores.mask.any() for batch in seen)
    assert max(batch.scores.log_ratio.abs().max().item() for batch in seen) <= 1e-5
    if issubclass(trainer, DivergenceTrainer):
        assert abs(step_logs(made)[0]["loss"]) <= 1e-6


def strength_zero_is_grpo(trainer: Any, model: Path, tokenizer: Any, folder: Path) -> None:
    """With TRL's head bit for bit; with ours to 1e-5 over five steps of plain descent (Adam blows up small numbers)."""
    common = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 5}
    zero: dict[str, Any] = {**own_settings(trainer), **dict.fromkeys(strength_fields(trainer), 0.0), **common}

    def run(cls: Any, args: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
        made = build(cls, args, str(model), tokenizer)
        made.train()
        return state_of(made.model), [(e["loss"], e["grad_norm"]) for e in step_logs(made)]

    weights, logs = run(GRPOTrainer, GRPOConfig(**settings(folder, **common)))
    assert any(loss != 0 for loss, _ in logs)
    same = run(trainer, trainer.config_class(**distill_settings(folder, **zero, policy_logps="trl")))
    assert logs == same[1]
    assert_same_state(weights, same[0])
    close = run(trainer, trainer.config_class(**distill_settings(folder, **zero)))
    torch.testing.assert_close(torch.tensor(close[1]), torch.tensor(logs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(close[0], weights, atol=1e-5, rtol=0)


def evaluation_leaves_the_state_alone(trainer: Any, model: Path, tokenizer: Any, folder: Path) -> None:
    from tiny_policy import sums

    made = make(trainer, model, tokenizer, folder, max_steps=3, per_device_eval_batch_size=8)
    made.train()
    before, values = state_of(made.model), made.state_values()
    metrics = made.evaluate(sums().select(range(8)))
    assert made.state_values() == values
    assert_same_state(before, state_of(made.model))
    assert all(math.isfinite(value) for value in metrics.values())


def row_weights_weigh_everything(trainer: Any, model: Path, tokenizer: Any, folder: Path) -> None:
    """Rows of weight 0 teach nothing, whatever the algorithm adds to their advantage; `"paced"` runs everywhere."""
    made = make(trainer, model, tokenizer, folder, row_weight="contract.nothing", max_steps=1)
    before = state_of(made.model)
    made.train()
    assert_same_state(before, state_of(made.model))
    make(trainer, model, tokenizer, folder, row_weight="paced", max_steps=1).train()


def nothing(rollout: Any) -> float:
    return 0.0


def has_a_card_of_its_own(trainer: Any, model: Path, tokenizer: Any, folder: Path) -> None:
    made = make(trainer, model, tokenizer, folder)
    made.create_model_card(model_name="mine")
    card = (folder / "README.md").read_text()
    assert f"trained with {trainer._name}, a method" in card
    assert trainer._paper["id"] in card
    assert "trl-selfdistill" in card


OTHER_VALUES = {
    "context": "gold",
    "teacher_template": HINT_TEMPLATE,
    "context_placement": "system",
    "max_context_tokens": 8,
    "context_thinking": "remove",
    "teacher_chat_template_kwargs": {"enable_thinking": True},
    "teacher_model_kind": "ema",
    "teacher_update_rate": 0.5,
    "teacher_sync_steps": 2,
    "teacher_ema_dtype": "bfloat16",
}


def asks_no_teacher(trainer: Any, model: Path, tokenizer: Any, folder: Path) -> None:
    """Nothing of a teacher is logged, recorded or claimed, and what only a teacher would read is refused."""
    made = make(trainer, model, tokenizer, folder, log_token_signals=-1, max_steps=2, log_completions=True)
    made.train()
    logged = {key for entry in made.state.log_history for key in entry}
    assert "self_distill/student_entropy" in logged
    assert not [key for key in logged if any(word in key for word in ("teacher", "log_ratio", "context"))]
    for row in pyarrow.parquet.read_table(folder / "token_signals").to_pylist():
        assert all(value is not None for value in row["student_logps"])
        assert not any(row[name] for name in ("context", "context_source", "teacher_prompt", "views"))
        assert not any(value is not None for name in ("teacher_logps", "log_ratio") for value in row[name])
        assert not any(value is not None for value in row["teacher_entropy"])
    made.create_model_card(model_name="mine")
    card = (folder / "README.md").read_text().partition("## Citations")[0]
    assert "| teacher | none |" in card
    assert not [word for word in ("teacher's", "u_t", "has_teacher", *ONLY_TEACHERS) if f"`{word}`" in card]
    assert set(OTHER_VALUES) == set(ONLY_TEACHERS)
    for name, value in OTHER_VALUES.items():
        with pytest.raises(ValueError, match=f"{name}=.*asks none"):
            trainer.config_class(**settings(folder, **{name: value}))
    with pytest.raises(ValueError, match=r"context_builder: .* asks no teacher"):
        build(trainer, made.args, str(model), tokenizer, context_builder=lambda rollout: rollout.gold)


PROMISES = [
    trains_with_finite_metrics,
    takes_plain_text,
    resumes_to_the_unbroken_run,
    equal_prompts_have_no_effect,
    strength_zero_is_grpo,
    evaluation_leaves_the_state_alone,
    row_weights_weigh_everything,
    has_a_card_of_its_own,
    asks_no_teacher,
]
NEEDS: dict[Any, Any] = {
    equal_prompts_have_no_effect: lambda trainer: trainer.views,
    strength_zero_is_grpo: strength_fields,  # without a strength there is no GRPO to go back to
    asks_no_teacher: lambda trainer: not trainer.views,
}
"""What a class must have for a promise to mean anything. The others are every trainer's."""


def promises_of(trainer: Any) -> list[Any]:
    return [promise for promise in PROMISES if promise not in NEEDS or NEEDS[promise](trainer)]
