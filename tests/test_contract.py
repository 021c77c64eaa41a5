"""Every exported trainer keeps the promises of `contract.py`; trainers that break one are caught."""

from dataclasses import dataclass, field

import contract
import pytest
import torch

from trl_selfdistill import SelfDistillConfig
from trl_selfdistill.trainer import TokenSignalTrainer

TRAINERS = contract.trainers()


PROMISES = [
    pytest.param(trainer, promise, id=f"{name}-{promise.__name__}")
    for name, trainer in TRAINERS.items()
    for promise in contract.promises_of(trainer)
]


@pytest.mark.parametrize(("trainer", "promise"), PROMISES)
def test_promises(trainer, promise, model_dir, tokenizer, tmp_path):
    promise(trainer, model_dir, tokenizer, tmp_path)


@dataclass
class WrongConfig(SelfDistillConfig):
    wrong_strength: float = field(default=0.5, metadata={"help": "How wrong."})


class Wrong(TokenSignalTrainer):
    """An algorithm that keeps every promise, for others to break one."""

    config_class = WrongConfig
    _name, _tag_names = "Wrong", ["wrong"]
    _paper = {"title": "Wrong", "id": "0000.00000", "citation": "@article{0000.00000}"}

    def token_advantages(self, advantages, scores):
        return advantages.unsqueeze(1) * (1.0 + self.args.wrong_strength * scores.log_ratio.clamp(-1, 1)), {}


class ReturnsNaN(Wrong):
    def token_advantages(self, advantages, scores):
        shaped, metrics = super().token_advantages(advantages, scores)
        return shaped * float("nan"), metrics


class ReturnsAnotherShape(Wrong):
    def token_advantages(self, advantages, scores):
        return advantages, {}


class ForgetsItsState(Wrong):
    """Its strength grows with every batch, and is not in the checkpoint."""

    def set_up(self):
        self.batches = 0

    def token_advantages(self, advantages, scores):
        self.batches += scores.training
        return advantages.unsqueeze(1) + 0.1 * self.batches * scores.log_ratio, {}


class IsNeverGRPO(Wrong):
    def token_advantages(self, advantages, scores):
        return advantages.unsqueeze(1) * (1.0 + 0.01 * scores.log_ratio), {}


class StepsInEvaluation(ForgetsItsState):
    def state_values(self):
        return {"batches": self.batches}

    def load_state_values(self, values):
        self.batches = values["batches"]

    def token_advantages(self, advantages, scores):
        self.batches += 1
        return advantages.unsqueeze(1) + 0.1 * scores.log_ratio, {}


class ForgetsTheRowWeight(Wrong):
    def shape(self, inputs):
        return super().shape({**inputs, "row_weight": torch.ones_like(inputs["row_weight"])})


class LogsNothingness(Wrong):
    def token_advantages(self, advantages, scores):
        self.add_metrics({"wrong/nothing": float("nan")})
        return super().token_advantages(advantages, scores)


class AsksNobodyAndReadsTheAnswer(Wrong):
    views = ()


class TakesSettingsOfNoUse(Wrong):
    """Its configuration does not call `check_no_teacher`."""

    views = ()

    def token_advantages(self, advantages, scores):
        return advantages.unsqueeze(1) + scores.student_logps, {}


BROKEN = [
    (ReturnsNaN, contract.trains_with_finite_metrics, ValueError, "returned NaN or infinite advantages"),
    (ReturnsAnotherShape, contract.trains_with_finite_metrics, ValueError, r"must return a tensor \(B, T\)"),
    (ForgetsItsState, contract.resumes_to_the_unbroken_run, AssertionError, None),
    (IsNeverGRPO, contract.strength_zero_is_grpo, AssertionError, None),
    (StepsInEvaluation, contract.evaluation_leaves_the_state_alone, AssertionError, None),
    (ForgetsTheRowWeight, contract.row_weights_weigh_everything, AssertionError, "tensors differ"),
    (AsksNobodyAndReadsTheAnswer, contract.trains_with_finite_metrics, ValueError, "returned NaN or infinite"),
    (TakesSettingsOfNoUse, contract.asks_no_teacher, pytest.fail.Exception, "DID NOT RAISE"),
    (LogsNothingness, contract.trains_with_finite_metrics, AssertionError, "no finite numbers"),
]


@pytest.mark.parametrize(("trainer", "promise", "error", "words"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_promise_is_caught(trainer, promise, error, words, model_dir, tokenizer, tmp_path):
    with pytest.raises(error, match=words):
        promise(trainer, model_dir, tokenizer, tmp_path)


def test_the_pattern_of_the_broken_ones_keeps_the_promises(model_dir, tokenizer, tmp_path):
    for promise in (contract.resumes_to_the_unbroken_run, contract.strength_zero_is_grpo):
        promise(Wrong, model_dir, tokenizer, tmp_path / promise.__name__)


def test_an_incomplete_class_is_refused_when_it_is_made():
    def make(**attributes):
        members = {"config_class": WrongConfig, "token_advantages": Wrong.token_advantages}
        members |= {name: getattr(Wrong, name) for name in ("_name", "_tag_names", "_paper")}
        return type("Mine", (TokenSignalTrainer,), {k: v for k, v in (members | attributes).items() if v is not ...})

    make()
    for name in ("_name", "_tag_names", "_paper", "config_class"):
        with pytest.raises(ValueError, match=f"Mine has no {name}"):
            make(**{name: ...})
    with pytest.raises(ValueError, match=r"templates must have the keys"):
        make(templates={"user": "{context}"})
    with pytest.raises(ValueError, match="need a method `contexts`"):
        make(views=("right", "wrong"))
    with pytest.raises(ValueError, match="tuple of different names"):
        make(views=["teacher"])
