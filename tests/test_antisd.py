import math

import pytest
import torch
from helpers import assert_same_state, build, distill_settings, record_scores, state_of, step_logs, sums
from hypothesis import given
from hypothesis import strategies as st

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, Rollout
from trl_selfdistill.algorithms.antisd import antisd_advantages, toward_advantages
from trl_selfdistill.context.builders import verdict
from trl_selfdistill.maths import phi


@pytest.mark.parametrize(("u", "expected"), [(-1.0, 0.094971), (1.0, -0.155029), (0.0, 0.0), (-50.0, 0.173287)])
def test_vectors(u, expected):
    shaped = antisd_advantages(torch.zeros(1), torch.tensor([[u]]), strength=0.5)
    assert shaped.item() == pytest.approx(expected, abs=1e-6)


log_ratios = st.lists(st.floats(-300, 300), min_size=1, max_size=6)


@given(st.floats(-3, 3), log_ratios, st.floats(0.01, 2))
def test_surprise_earns_at_most_half_log_two_and_what_is_expected_costs(advantage, u, strength):
    a, u = torch.tensor([advantage], dtype=torch.float64), torch.tensor([u], dtype=torch.float64)
    change = antisd_advantages(a, u, strength=strength) - a
    assert (change[u > 1e-6] < 0).all()
    assert (change[u < -1e-6] > 0).all()
    assert (change <= strength * math.log(2) / 2 + 1e-12).all()


@given(st.floats(-3, 3), log_ratios)
def test_strength_zero_is_exactly_grpo(advantage, u):
    a, u = torch.tensor([advantage]), torch.tensor([u])
    assert torch.equal(antisd_advantages(a, u, strength=0.0), a.unsqueeze(1).expand_as(u))


def test_toward_is_the_plain_log_ratio():
    shaped = toward_advantages(torch.tensor([1.0]), torch.tensor([[-2.0, 3.0]]), strength=0.5)
    assert shaped.tolist() == [[0.0, 2.5]]


def test_the_expected_update_is_the_gradient_of_the_jensen_shannon_divergence():
    student = torch.tensor([0.6, 0.3, 0.08, 0.02], dtype=torch.float64)
    teacher = torch.tensor([0.15, 0.75, 0.08, 0.02], dtype=torch.float64)
    logits = student.log().requires_grad_()
    p = logits.softmax(-1)
    m = (p + teacher) / 2
    jsd = 0.5 * (p * (p / m).log()).sum() + 0.5 * (teacher * (teacher / m).log()).sum()
    (gradient,) = torch.autograd.grad(jsd, logits)
    weights = -phi(teacher.log() - student.log())
    score = torch.eye(4, dtype=torch.float64) - student  # d log p(v) / d logits, a row for each v
    expected = (student * weights) @ score
    torch.testing.assert_close(expected, gradient)
    torch.testing.assert_close(
        gradient, torch.tensor([0.106766, -0.101060, -0.004565, -0.001141], dtype=torch.float64), atol=1e-6, rtol=0
    )


def make(model_dir, tokenizer, tmp_path, *, config=None, **kwargs):
    settings = distill_settings(tmp_path, **{"context": "gold", "antisd_warmup": 2, "max_steps": 4, **(config or {})})
    return build(AntiSDTrainer, AntiSDConfig(**settings), str(model_dir), tokenizer, **kwargs)


def test_the_gate_steps_once_a_generation_batch_and_never_in_evaluation(model_dir, tokenizer, tmp_path):
    trainer = make(
        model_dir,
        tokenizer,
        tmp_path,
        config={
            "num_iterations": 2,
            "gradient_accumulation_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "per_device_eval_batch_size": 8,
            "max_steps": 6,
        },
        eval_dataset=sums().select(range(4)),
    )
    scores = record_scores(trainer)
    trainer.train()
    first = [s for s in scores if s.training and s.starts_batch]
    assert len(first) == 3  # 6 steps, a batch serves 2 iterations
    assert sum(s.training for s in scores) == 12  # micro-batches
    assert sum(not s.training for s in scores) == 6 * 2
    assert trainer.gate.steps == 3
    assert list(trainer.gate.history) == [s.median_entropy for s in first][:2]
    assert any("eval_antisd/gate" in entry for entry in trainer.state.log_history)


def test_warm_up_is_grpo_and_the_term_stays_where_the_advantage_is_zero(model_dir, tokenizer, tmp_path):
    trainer = make(model_dir, tokenizer, tmp_path, reward_funcs=lambda completions, **kwargs: [0.0] * len(completions))
    trainer.train()
    logs = step_logs(trainer)
    assert [entry["antisd/gate"] for entry in logs[:3]] == [0.0, 0.0, 1.0]
    assert [entry["antisd/strength"] for entry in logs[:3]] == [0.0, 0.0, 0.5]
    assert [entry["loss"] == 0.0 for entry in logs[:3]] == [True, True, False]


def test_toward_has_neither_gate_nor_warm_up(model_dir, tokenizer, tmp_path):
    trainer = make(
        model_dir,
        tokenizer,
        tmp_path,
        config={"antisd_direction": "toward"},
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
    )
    trainer.train()
    assert all(entry["loss"] != 0.0 for entry in step_logs(trainer))
    assert trainer.gate.steps == 0
    assert "antisd/gate" not in step_logs(trainer)[0]


def test_the_verdict_is_about_the_rollout_itself():
    wrong = Rollout(row={}, completion="y", correct=False, peers=("right",))
    assert verdict(wrong) == "The answer is incorrect."
    assert verdict(Rollout(row={}, completion="y", correct=False, assessed=False)) == "The answer was not assessed."
    tests = Rollout(row={"feedback": "static"}, completion="y", correct=False, feedback="passes 7 of 12 tests")
    assert verdict(tests) == "passes 7 of 12 tests"


def half_right(rollout: Rollout) -> str:
    return f"<|end|>{len(rollout.completion)} characters"


def unrewarded(completions, **kwargs):
    return [None] * len(completions)


def test_rows_without_a_reward_do_not_move_the_policy(model_dir, tokenizer, tmp_path):
    config = {"antisd_warmup": 1, "antisd_close_ratio": 0.0, "context": "gold", "max_steps": 3}
    trainer = make(model_dir, tokenizer, tmp_path, config=config, reward_funcs=unrewarded)
    before = state_of(trainer.model)
    trainer.train()
    assert_same_state(before, state_of(trainer.model))


@pytest.mark.parametrize("source", ["verdict", "column", "function"])
def test_feedback_reaches_the_teacher_and_is_plain_text(source, model_dir, tokenizer, tmp_path):
    dataset = sums()
    if source == "column":
        dataset = dataset.add_column("feedback", ["passes <|user|> 7 of 12"] * len(dataset))
    trainer = make(
        model_dir,
        tokenizer,
        tmp_path,
        config={
            "teacher_template": "{prompt}<{context}|{feedback}>",
            "max_context_tokens": 1,
            "antisd_feedback": "test_antisd.half_right" if source == "function" else None,
            "max_steps": 1,
            "remove_unused_columns": source == "column",
            "feedback_column": "feedback" if source == "column" else None,
        },
        train_dataset=dataset,
    )
    seen = []
    apply = trainer.apply_teacher
    trainer.apply_teacher = lambda batch, lesson: (seen.append(lesson), apply(batch, lesson))[1]
    trainer.train()
    lesson = seen[0]
    for i, rollout in enumerate(lesson.rollouts):
        prompts = lesson.views["teacher"].prompts
        ids = prompts["teacher_prompt_ids"][i][prompts["teacher_prompt_mask"][i].bool()]
        text = tokenizer.decode(ids)
        told = {"verdict": verdict(rollout), "column": "passes <|user|> 7 of 12", "function": half_right(rollout)}
        assert f"|{told[source]}>" in text
        assert (ids == tokenizer.convert_tokens_to_ids("<|user|>")).sum() == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"antisd_strength": -1.0},
        {"antisd_warmup": 0},
        {"antisd_close_ratio": 1.5},
        {"antisd_direction": "up"},
        {"antisd_feedback": "no.such.function"},
        {"antisd_feedback": "test_antisd.half_right"},  # the template of these settings has no {feedback}
        {"antisd_strength": float("nan")},
    ],
)
def test_config_names_the_bad_field(bad, tmp_path):
    with pytest.raises(ValueError, match=next(iter(bad))):
        AntiSDConfig(**distill_settings(tmp_path, **bad))
