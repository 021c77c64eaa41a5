"""`skip_unused_scores`: the policy learns the same, and the teacher reads less."""

import pytest
import torch
from contract import make, trainers
from helpers import state_of, step_logs, watch_signals

from trl_selfdistill import RLRTTrainer, RLSDTrainer
from trl_selfdistill.trainer import SelfDistillTrainer

COMMON = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 4}
CAN_SKIP = [name for name, cls in trainers().items() if cls.is_used is not SelfDistillTrainer.is_used]
SETTINGS = [
    {},
    {"num_iterations": 2},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    {"shared_prefix": False},
    {"policy_logps": "trl"},
]


def test_which_algorithms_leave_rows_out():
    assert CAN_SKIP == ["RLRTTrainer", "RLSDTrainer"]


@pytest.mark.parametrize("overrides", SETTINGS, ids=lambda o: "+".join(o) or "default")
@pytest.mark.parametrize("name", CAN_SKIP)
def test_the_policy_learns_the_same(name, overrides, model_dir, tokenizer, tmp_path):
    weights, logs, scored = [], [], []
    for skips in (False, True):
        config = {**COMMON, **overrides, "skip_unused_scores": skips}
        trainer = make(trainers()[name], model_dir, tokenizer, tmp_path, **config)
        seen = watch_signals(trainer)
        trainer.train()
        weights.append(state_of(trainer.model))
        logs.append([(entry["loss"], entry["grad_norm"]) for entry in step_logs(trainer)])
        scored.append(torch.cat([batch.scores.mask.any(dim=1) for batch in seen]))
        used = torch.cat([batch.plain != 0 for batch in seen])
        if name == "RLRTTrainer":
            used &= torch.cat([batch.scores.correct for batch in seen])
    assert any(loss != 0 for loss, _ in logs[0])
    torch.testing.assert_close(torch.tensor(logs[1]), torch.tensor(logs[0]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=0)
    assert scored[0].all()
    assert torch.equal(scored[1], used)
    assert 0 < used.sum() < len(used), "the batch must have rows of both kinds"


def test_wrong_rows_and_rows_without_an_advantage_are_unused():
    advantages, correct = torch.tensor([1.0, -1.0, 0.0, 0.5]), torch.tensor([True, False, True, False])
    assert RLRTTrainer.is_used(None, advantages, correct).tolist() == [True, False, False, False]
    assert RLSDTrainer.is_used(None, advantages, correct).tolist() == [True, True, False, True]


@pytest.mark.parametrize("name", [name for name in trainers() if name not in CAN_SKIP])
def test_the_others_refuse_it(name, model_dir, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="skip_unused_scores=True does nothing for"):
        make(trainers()[name], model_dir, tokenizer, tmp_path, skip_unused_scores=True)
