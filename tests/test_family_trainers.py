"""What the trainers of the family do beyond the contract: what they show the teacher, and what they weigh."""

import pytest
import torch
from contract import make
from helpers import build, distill_settings, settings, step_logs, watch_signals

from trl_selfdistill import (
    Context,
    OPSATrainer,
    OPSDConfig,
    OPSDTrainer,
    PowerOPDConfig,
    PowerOPDTrainer,
    RLCSDTrainer,
    RLSDTrainer,
    Rollout,
    SDPOTrainer,
)
from trl_selfdistill.algorithms.sdpo import sdpo_weights
from trl_selfdistill.maths import position_weights, skip_weights
from trl_selfdistill.trainer import divergence


def right_in_turn(completions, **kwargs):
    """Every other rollout is right."""
    return [float(i % 2 == 0) for i in range(len(completions))]


def watched(trainer_class, model_dir, tokenizer, folder, **config):
    trainer = make(
        trainer_class,
        model_dir,
        tokenizer,
        folder,
        data={"reward_funcs": right_in_turn},
        **{"max_steps": 1, "max_completion_length": 8, **config},
    )
    seen = watch_signals(trainer)
    trainer.train()
    return trainer, seen


def test_rlsds_strength_is_a_function_of_the_step(model_dir, tokenizer, tmp_path):
    trainer, _ = watched(RLSDTrainer, model_dir, tokenizer, tmp_path, rlsd_decay_steps=4, max_steps=6)
    assert [entry["rlsd/strength"] for entry in step_logs(trainer)] == [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]


@pytest.mark.parametrize("most", [1, 4])
def test_rlcsd_shows_a_right_rollout_and_wrong_ones(most, model_dir, tokenizer, tmp_path):
    config = {"context": "peer", "num_generations": 8, "rlcsd_wrong_peers": most}
    _, (batch,) = watched(RLCSDTrainer, model_dir, tokenizer, tmp_path, **config)
    both = 0
    for i, rollout in enumerate(batch.rollouts):
        contexts = {name: view.contexts[rollout.index] for name, view in batch.lesson.views.items()}
        if not rollout.peers or not rollout.wrong_peers:
            assert not any(contexts.values())
            assert torch.equal(batch.advantages[i], batch.plain[i].expand_as(batch.advantages[i]))
            continue
        both += 1
        assert contexts["right"].text == rollout.peers[0]
        shown = [context.text for name, context in contexts.items() if context is not None and name != "right"]
        assert tuple(shown) == rollout.wrong_peers[:most]
    assert both > 4
    added = batch.advantages - batch.plain.unsqueeze(1)
    assert added.abs().max() <= 0.5 + 1e-6
    assert (batch.advantages * batch.plain.unsqueeze(1) >= 0).all()
    assert (added != 0).any()


def test_rlcsd_without_hints_is_grpo(model_dir, tokenizer, tmp_path):
    _, (batch,) = watched(RLCSDTrainer, model_dir, tokenizer, tmp_path, context="none")
    assert torch.equal(batch.advantages, batch.plain.unsqueeze(1).expand_as(batch.advantages))


@pytest.mark.parametrize(("made", "views"), [(None, 0), ("  ", 0), (Context(None, "mine"), 2), ("7", 2)])
def test_rlcsd_shows_wrong_hints_beside_a_right_one_alone(made, views, model_dir, tokenizer, tmp_path):
    data = {"context_builder": lambda rollout: made}
    trainer = make(RLCSDTrainer, model_dir, tokenizer, tmp_path, data=data)
    shown = trainer.contexts(Rollout({}, "5", correct=False, wrong_peers=("3",)))
    assert len(shown) == views
    if isinstance(made, Context):  # nothing on one side, nothing on the other
        assert [context.text for context in shown.values()] == [None, None]


def test_sdpo_shows_another_right_rollout_else_feedback_else_nothing(model_dir, tokenizer, tmp_path):
    trainer = make(SDPOTrainer, model_dir, tokenizer, tmp_path, context="peer_else_feedback")
    rollout = Rollout({}, "5", correct=False, peers=("7", "8"), feedback="Too small.")
    alone = Rollout({}, "5", correct=False, feedback="Too small.")
    nothing = Rollout({}, "5", correct=True)
    shown = [trainer.contexts(each)["teacher"] for each in (rollout, alone, nothing)]
    assert [None if c is None else (c.text, c.source) for c in shown] == [
        ("7", "peer"),
        ("Too small.", "feedback"),
        None,
    ]
    trainer.args.teacher_template = None  # the algorithm's own has a heading over each kind
    shown = [trainer.contexts(each)["teacher"] for each in (rollout, alone, nothing)]
    assert [None if c is None else c.text for c in shown] == [
        "A correct solution:\n\n7",
        "Feedback on an earlier attempt that failed:\n\nToo small.",
        None,
    ]


@pytest.mark.parametrize(
    ("about", "heading"),
    [
        ({"correct": True}, "Feedback on an earlier attempt:"),
        ({"correct": False, "passed": True, "finished": False}, "Feedback on an earlier attempt:"),
        ({"correct": False, "assessed": False}, "Feedback on an earlier attempt:"),
        ({"correct": False}, "Feedback on an earlier attempt that failed:"),
    ],
)
def test_sdpo_calls_no_attempt_failed_that_was_not_judged_so(about, heading, model_dir, tokenizer, tmp_path):
    trainer = make(SDPOTrainer, model_dir, tokenizer, tmp_path, context="peer_else_feedback", teacher_template=None)
    shown = trainer.contexts(Rollout({}, "5", feedback="Passes 12 of 12 tests.", **about))["teacher"]
    assert shown.text == f"{heading}\n\nPasses 12 of 12 tests."


def test_sdpo_calls_no_lesson_a_correct_solution(model_dir, tokenizer, tmp_path):
    trainer = make(SDPOTrainer, model_dir, tokenizer, tmp_path, context="memory", teacher_template=None)
    rollout = Rollout({}, "5", correct=False, prompt="1+1=")
    trainer.memory.learn([trainer.memory.lesson(rollout)])
    assert trainer.contexts(rollout)["teacher"] == trainer.memory(rollout)


def recorded_weights(monkeypatch):
    given = []
    op = divergence.linear_divergence

    def recording(*args, **kwargs):
        given.append(kwargs["token_weights"])
        return op(*args, **kwargs)

    monkeypatch.setattr(divergence, "linear_divergence", recording)
    return given


@pytest.mark.parametrize("iterations", [1, 2])
def test_sdpo_weighs_tokens_by_their_ratio_where_the_policy_has_moved_on(
    iterations, model_dir, tokenizer, tmp_path, monkeypatch
):
    given, asked = recorded_weights(monkeypatch), []
    original = SDPOTrainer.token_weights

    def asking(self, scores):
        asked.append(scores)
        return original(self, scores)

    monkeypatch.setattr(SDPOTrainer, "token_weights", asking)
    config = {"context": "gold", "num_iterations": iterations, "learning_rate": 3e-2, "max_steps": iterations}
    make(SDPOTrainer, model_dir, tokenizer, tmp_path, **config).train()
    assert len(given) == iterations
    if iterations == 1:
        assert not asked, "fresh rollouts have a ratio of 1, and two products with the head are saved"
        assert len(given[0].unique()) == 1
        return
    for weights, scores in zip(given, asked, strict=True):
        ratio = sdpo_weights(scores.student_logps, scores.old_logps, clip=2.0)[scores.mask]
        torch.testing.assert_close(weights, ratio / scores.mask.sum())
    first, second = (scores.student_logps - scores.old_logps for scores in asked)
    assert first.abs().max() < 1e-5
    assert second.abs().max() > 0.1
    assert given[1].max() <= 2.0 / asked[1].mask.sum() * (1 + 1e-6)


@pytest.mark.parametrize("config", [{"opsd_skip_tokens": 1}, {"opsd_position_weights": True}], ids=str)
def test_opsd_weighs_by_place(config, model_dir, tokenizer, tmp_path, monkeypatch):
    given = recorded_weights(monkeypatch)
    _, (batch,) = watched(OPSDTrainer, model_dir, tokenizer, tmp_path, **config)
    mask = batch.scores.mask
    weights = skip_weights(mask, tokens=1) if "opsd_skip_tokens" in config else position_weights(mask)
    expected = weights[mask] / mask.sum()
    torch.testing.assert_close(given[0].sort().values, expected.sort().values)  # TRL shuffles the rows
    assert len(given[0].unique()) > 1


def test_opsd_refuses_fewer_than_no_tokens(tmp_path):
    with pytest.raises(ValueError, match="opsd_skip_tokens=-1"):
        OPSDConfig(**distill_settings(tmp_path, opsd_skip_tokens=-1))


def test_power_opd_needs_no_reward_but_for_peers(model_dir, tokenizer, tmp_path):
    config = PowerOPDConfig(**distill_settings(tmp_path, max_steps=1))
    trainer = build(PowerOPDTrainer, config, str(model_dir), tokenizer, reward_funcs=None)
    seen = watch_signals(trainer)
    trainer.train()
    (batch,) = seen
    assert not batch.plain.any()
    assert torch.equal(batch.advantages[batch.scores.mask], batch.metrics["poweropd/reward"][batch.scores.mask])
    assert "reward" not in step_logs(trainer)[0]
    for context in ("peer", "own_peer", "peer_else_feedback"):
        config = PowerOPDConfig(**distill_settings(tmp_path, context=context))
        with pytest.raises(ValueError, match=f"context='{context}' needs reward_funcs"):
            build(PowerOPDTrainer, config, str(model_dir), tokenizer, reward_funcs=None)


def test_power_opd_without_rewards_and_teacher_trains_on_nothing(model_dir, tokenizer, tmp_path, caplog):
    def said(folder, **data):
        config = PowerOPDConfig(**distill_settings(folder, max_steps=1, health_thresholds={"no_teacher": 1}))
        caplog.clear()
        build(PowerOPDTrainer, config, str(model_dir), tokenizer, context_builder=lambda rollout: None, **data).train()
        return caplog.text

    why = "because the context_builder returned no text"
    assert f"PowerOPD is training on nothing now, {why}" in said(tmp_path / "without", reward_funcs=None)
    assert f"PowerOPD is plain GRPO now, {why}" in said(tmp_path / "with", reward_funcs=right_in_turn)


def test_opsa_needs_no_teacher_no_reward_and_no_solution(model_dir, tokenizer, tmp_path, caplog):
    config = OPSATrainer.config_class(**settings(tmp_path, max_steps=1))
    assert "asks the policy what it thinks of itself" not in caplog.text
    trainer = build(OPSATrainer, config, str(model_dir), tokenizer, reward_funcs=None)
    seen = watch_signals(trainer)
    trainer.train()
    (batch,) = seen
    pushed = batch.advantages[batch.scores.mask]
    assert (pushed < 0).sum() == max(1, int(0.2 * len(pushed)))
    assert pushed.min() == -1.0
