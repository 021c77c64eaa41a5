"""What an algorithm may hook: views, row weights, token weights. Algorithms of the tests alone, to which nothing in
`trainer/` refers."""

import contract
import new_algorithm
import pytest
import torch
from contract import make
from helpers import build, distill_settings, settings, sums, watch_signals
from test_contract import Wrong, WrongConfig

from trl_selfdistill import OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.maths import paced_weights
from trl_selfdistill.trainer import DivergenceTrainer, divergence
from trl_selfdistill.trainer.arguments import configuration_of


class TwoViews(Wrong):
    """The gold solution and another problem's, contrasted."""

    views = ("right", "wrong")

    def contexts(self, rollout):
        return {"right": rollout.gold, "wrong": None if rollout.index % 4 == 0 else rollout.other_gold}

    def token_advantages(self, advantages, scores):
        right, wrong = scores.views["right"], scores.views["wrong"]
        both = right.mask & wrong.mask
        return advantages.unsqueeze(1) + 0.1 * torch.where(both, right.logps - wrong.logps, 0.0), {}


class NoTeacher(Wrong):
    """Reinforces the tokens that the student itself found unlikely."""

    views = ()

    def token_advantages(self, advantages, scores):
        rare = scores.student_logps < -1.0
        return advantages.unsqueeze(1) * (1.0 + rare.float()), {"rare/share": rare.float()}


def test_two_views_are_scored_and_masked_apart(model_dir, tokenizer, tmp_path):
    trainer = make(TwoViews, model_dir, tokenizer, tmp_path)
    seen = watch_signals(trainer)
    trainer.train()
    assert seen
    for batch in seen:
        right, wrong = batch.scores.views["right"], batch.scores.views["wrong"]
        has_wrong = [rollout.index % 4 != 0 for rollout in batch.rollouts]
        assert right.mask.any(dim=1).all()
        assert wrong.mask.any(dim=1).tolist() == has_wrong
        assert not wrong.logps[~wrong.mask].any()
        assert not torch.equal(right.logps[wrong.mask], wrong.logps[wrong.mask])
        assert torch.equal(batch.scores.teacher_logps, right.logps)
        for i, rollout in enumerate(batch.rollouts):
            for name, text in (("right", rollout.gold), ("wrong", rollout.other_gold)):
                ids = batch.views[name]["teacher_prompt_ids"][i]
                assert (f"[{text}]" in tokenizer.decode(ids)) == (name == "right" or has_wrong[i])
    entry = trainer.state.log_history[0]
    assert entry["self_distill/has_teacher"] == 1.0
    assert entry["self_distill/wrong_has_teacher"] == 0.75


def test_no_view_asks_no_teacher(model_dir, tokenizer, tmp_path):
    trainer = make(NoTeacher, model_dir, tokenizer, tmp_path, context="peer")
    trainer.teacher.weights = None  # would fail if it were asked
    seen = watch_signals(trainer)
    trainer.train()
    for batch in seen:
        assert torch.equal(batch.scores.mask, batch.completion_mask.bool())
        assert batch.scores.student_logps[batch.scores.mask].max() < 0
        assert batch.scores.teacher_logps.isnan().all()
    assert "rare/share" in trainer.state.log_history[0]
    assert "self_distill/has_teacher" not in trainer.state.log_history[0]


def some_right(completions, **kwargs):
    """Groups with 1, 3, 0 and 4 right of 4."""
    right = [1, 3, 0, 4]
    return [float(i % 4 < right[i // 4 % 4]) for i in range(len(completions))]


@pytest.mark.parametrize(("trainer", "config"), [(RLRTTrainer, RLRTConfig), (OPSDTrainer, OPSDConfig)])
def test_paced_by_configuration_alone(trainer, config, model_dir, tokenizer, tmp_path):
    args = config(
        **distill_settings(
            tmp_path,
            row_weight="paced",
            num_generations=4,
            per_device_train_batch_size=16,
            max_completion_length=8,
            context="gold",
            max_steps=1,
        )
    )
    made = build(trainer, args, str(model_dir), tokenizer, reward_funcs=some_right)
    seen = watch_signals(made)
    made.train()
    (batch,) = seen
    for i, rollout in enumerate(batch.rollouts):
        weight = paced_weights(torch.tensor([rollout.pass_rate])).item()
        assert batch.lesson.row_weights[rollout.index].item() == pytest.approx(weight)
        if trainer is RLRTTrainer and not rollout.correct:
            assert batch.advantages[i][0].item() == pytest.approx(weight * batch.plain[i].item())
    assert len({r.pass_rate for r in batch.rollouts}) > 1


def test_row_weights_reach_rows_without_a_teacher(model_dir, tokenizer, tmp_path):
    """The only correct rollout of a group has no peer, and is weighed all the same."""
    args = RLRTConfig(
        **distill_settings(tmp_path, row_weight="test_seams.half", max_steps=1, max_completion_length=8),
        rlrt_strength=0.0,
    )
    made = build(RLRTTrainer, args, str(model_dir), tokenizer, reward_funcs=some_right)
    seen = watch_signals(made)
    made.train()
    (batch,) = seen
    assert not batch.scores.mask.any(dim=1).all()
    expected = 0.5 * batch.plain.unsqueeze(1).expand_as(batch.advantages)
    assert torch.equal(batch.advantages, expected)


def half(rollout) -> float:
    return 0.5


NO_WEIGHTS = {"nan": float("nan"), "inf": float("inf"), "None": None, "'1'": "1", "-1": -1}


def no_weight(rollout):
    return NO_WEIGHTS[rollout.row["kind"]]


@pytest.mark.parametrize("kind", NO_WEIGHTS)
@pytest.mark.parametrize("trainer", [RLRTTrainer, OPSDTrainer])
def test_a_row_weight_that_is_negative_or_no_finite_number_stops_the_run(trainer, kind, model_dir, tokenizer, tmp_path):
    args = trainer.config_class(
        **distill_settings(tmp_path, row_weight="test_seams.no_weight", context="gold", remove_unused_columns=False)
    )
    data = sums().add_column("kind", [kind] * len(sums()))
    made = build(trainer, args, str(model_dir), tokenizer, train_dataset=data)
    with pytest.raises(ValueError, match=rf"row_weight='test_seams.no_weight' must return .* returned {kind}\."):
        made.train()


def test_row_weights_are_refused_where_they_cannot_be(model_dir, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"row_weight='paced'.*num_generations=1"):
        OPSDConfig(**distill_settings(tmp_path, row_weight="paced", num_generations=1))
    with pytest.raises(ValueError, match=r"row_weight='pace' is not one of"):
        RLRTConfig(**distill_settings(tmp_path, row_weight="pace"))
    args = OPSDConfig(**distill_settings(tmp_path, row_weight="paced", num_generations=2))
    with pytest.raises(ValueError, match=r"row_weight='paced'.*reward_funcs"):
        build(OPSDTrainer, args, str(model_dir), tokenizer, reward_funcs=None)


def test_the_weights_of_paced():
    weights = paced_weights(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.75, 1.0, 0.0]))
    torch.testing.assert_close(paced_weights(torch.tensor([0.3, 1.0]), a=0, b=0), torch.ones(2))
    assert paced_weights(torch.tensor([2 / 3]), a=2, b=1).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="negative"):
        paced_weights(torch.tensor([0.5]), a=-1)


def test_the_controls(model_dir, tokenizer, tmp_path):
    for context in ("none", "other_gold", "majority", "own_peer"):
        made = make(RLRTTrainer, model_dir, tokenizer, tmp_path, context=context, max_completion_length=8)
        made.train()
        shares = [entry.get("self_distill/has_teacher", 0.0) for entry in made.state.log_history[:-1]]
        assert max(shares) > 0, context
        name = "peer" if context == "own_peer" else context
        assert any(f"self_distill/context_{name}" in entry for entry in made.state.log_history), context


def test_another_gold_needs_another_problem(tmp_path):
    with pytest.raises(ValueError, match=r"context='other_gold'.*one problem per batch"):
        RLRTConfig(**distill_settings(tmp_path, context="other_gold", num_generations=8))


def test_a_config_with_a_subclass_or_a_factory(model_dir, tokenizer, tmp_path):
    from dataclasses import dataclass, field

    from trl import GRPOConfig

    @dataclass
    class Mine(RLRTConfig):
        more: float = 1.0

    with pytest.raises(ValueError, match="RLRT needs args of type RLRTConfig, not Mine"):
        build(RLRTTrainer, Mine(**distill_settings(tmp_path)), str(model_dir), tokenizer)

    @dataclass
    class WithFactory(WrongConfig):
        words: list = field(default_factory=lambda: ["wait"], metadata={"help": "Words."})

    plain = GRPOConfig(**settings(tmp_path))
    args = configuration_of(WithFactory, plain, "model", "Wrong")
    assert args.words == ["wait"]


class Late(DivergenceTrainer):
    """A divergence that leaves out the first token and doubles those that the student found unlikely."""

    config_class = WrongConfig
    _name, _tag_names, _paper = "Late", ["late"], Wrong._paper
    seen: list = []

    def divergence_settings(self):
        return {"beta": 0.0}

    def token_weights(self, scores):
        self.seen.append(scores)
        first = scores.mask.cumsum(dim=1) == 1
        return torch.where(first, 0.0, 1.0 + (scores.student_logps < -1.0).float())


def test_token_weights_of_a_divergence(model_dir, tokenizer, tmp_path, monkeypatch):
    given = []
    op = divergence.linear_divergence

    def recording(*args, **kwargs):
        given.append((kwargs["token_weights"], op(*args, **kwargs)))
        return given[-1][1]

    monkeypatch.setattr(divergence, "linear_divergence", recording)
    trainer = make(Late, model_dir, tokenizer, tmp_path, max_steps=1)
    trainer.train()
    ((weights, output),), (scores,) = given, Late.seen
    tokens = scores.mask.sum()
    expected = Late.token_weights(trainer, scores)[scores.mask] / tokens
    torch.testing.assert_close(weights, expected)
    counted = weights > 0
    torch.testing.assert_close(scores.student_logps[scores.mask][counted], output.student_logps[counted])
    assert (~counted).sum() == scores.mask.any(dim=1).sum()


def test_wrong_token_weights_are_refused(model_dir, tokenizer, tmp_path):
    class Nan(Late):
        def token_weights(self, scores):
            return torch.full_like(scores.student_logps, torch.nan)

    with pytest.raises(ValueError, match=r"Nan.token_weights must return finite weights"):
        make(Nan, model_dir, tokenizer, tmp_path).train()


@pytest.mark.parametrize(
    "promise", contract.promises_of(new_algorithm.RLSDTrainer), ids=lambda promise: promise.__name__
)
def test_the_example_of_a_new_algorithm_keeps_the_promises(promise, model_dir, tokenizer, tmp_path):
    promise(new_algorithm.RLSDTrainer, model_dir, tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("advantage", "weight", "expected"), [(1.2, 0.367879, 1.08), (-0.8, 2.718282, -0.88)], ids=["good", "bad"]
)
def test_the_vectors_of_the_example(advantage, weight, expected):
    u = torch.tensor([[-1.0]])
    weights = new_algorithm.rlsd_weights(torch.tensor([advantage]), u)
    assert weights.item() == pytest.approx(weight, abs=1e-6)
    shaped = advantage * (1 + 0.5 * (weights.clamp(0.8, 1.2) - 1))
    assert shaped.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.apart
def test_the_example_learns(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert new_algorithm.main(steps=40) > 0.35
