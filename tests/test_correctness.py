"""Which rollouts are correct: one reward, several, a function; finished or cut off."""

import pyarrow.parquet
import pytest
import torch
from helpers import build, distill_settings, sums, watch_signals

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.trainer.correctness import make_correctness, rewards_by_name
from trl_selfdistill.trainer.rollouts import feedback_of, is_finished


def judge(wanted, rewards, threshold=1.0):
    verdict = make_correctness(wanted, threshold, list(rewards)).judge(rewards)
    return verdict.passed, verdict.assessed


def both(rewards):
    return None if rewards["a"] is None else rewards["a"] + (rewards["b"] or 0.0) > 1.5


@pytest.mark.parametrize(
    ("wanted", "rewards", "expected"),
    [
        ("a", {"a": 1.0, "b": 0.0}, (True, True)),
        ("b", {"a": 1.0, "b": 0.0}, (False, True)),
        ("b", {"a": 1.0, "b": None}, (False, False)),
        (["a", "b"], {"a": 1.0, "b": None}, (True, True)),
        (["a", "b"], {"a": None, "b": 1.0}, (True, True)),
        (["a", "b"], {"a": 1.0, "b": 0.5}, (False, True)),
        ("a, b", {"a": 1.0, "b": 1.0}, (True, True)),
        (["a", "b"], {"a": None, "b": None}, (False, False)),
        (both, {"a": 1.0, "b": 1.0}, (True, True)),
        (both, {"a": 1.0, "b": None}, (False, True)),
        (both, {"a": None, "b": 1.0}, (False, False)),
        ("test_correctness.both", {"a": 1.0, "b": 1.0}, (True, True)),
    ],
)
def test_names_and_functions(wanted, rewards, expected):
    assert judge(wanted, rewards) == expected


def test_unknown_names_are_refused():
    for wanted in ("c", ["a", "c"], "a,c"):
        with pytest.raises(ValueError, match=r"correctness_reward=.*not among the reward functions"):
            make_correctness(wanted, 1.0, ["a", "b"])
    with pytest.raises(ValueError, match=r"correctness_reward='no.such.function'.*\['a', 'b'\]"):
        make_correctness("no.such.function", 1.0, ["a", "b"])


def test_nan_is_no_reward():
    assert rewards_by_name(torch.tensor([0.5, float("nan")]), ["a", "b"]) == {"a": 0.5, "b": None}


def even(prompts, completions, **kwargs):
    """The first task's reward; `None` for rows of the second."""
    texts = [prompt[0]["content"] for prompt in prompts]
    return [1.0 if text.startswith("1") else None for text in texts]


def odd(prompts, completions, **kwargs):
    texts = [prompt[0]["content"] for prompt in prompts]
    return [None if text.startswith("1") else 1.0 for text in texts]


def test_both_tasks_have_teachers(model_dir, tokenizer, tmp_path):
    data = sums().filter(lambda row: row["prompt"][0]["content"][0] in "12")
    config = RLRTConfig(
        **distill_settings(tmp_path, correctness_reward=["even", "odd"], max_completion_length=8, max_steps=4)
    )
    trainer = build(RLRTTrainer, config, str(model_dir), tokenizer, reward_funcs=[even, odd], train_dataset=data)
    seen = watch_signals(trainer)
    trainer.train()
    rollouts = [rollout for batch in seen for rollout in batch.rollouts]
    for first in "12":
        task = [r for r in rollouts if r.prompt[0]["content"].startswith(first)]
        assert any(r.correct and r.peers for r in task), first
    assert rollouts[0].rewards.keys() == {"even", "odd"}
    assert all(rollout.reward == 1.0 for rollout in rollouts)
    assert {rollout.step for rollout in rollouts} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("ids", "finished"),
    [([5, 9], True), ([5, 5, 9], True), ([5, 5, 5], False), ([5], True), ([], False), ([9, 9, 5], False)],
)
def test_finished_means_an_end_token_or_shorter_than_the_limit(ids, finished):
    assert is_finished(ids, {9}, max_length=3) == finished


def test_rollouts_that_end_without_an_end_token_can_be_correct(model_dir, tokenizer, tmp_path):
    """As after a stop string. They have peers, and AntiSD does not call them incorrect."""

    def stopped(prompts, trainer):
        ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
        return {"prompt_ids": ids, "completion_ids": [tokenizer("7")["input_ids"]] * len(prompts), "logprobs": None}

    config = AntiSDConfig(**distill_settings(tmp_path, context="peer", max_steps=1))
    right = lambda completions, **kwargs: [1.0] * len(completions)  # noqa: E731
    trainer = build(AntiSDTrainer, config, str(model_dir), tokenizer, rollout_func=stopped, reward_funcs=right)
    seen = watch_signals(trainer)
    trainer.train()
    (batch,) = seen
    assert all(rollout.correct and rollout.peers for rollout in batch.rollouts)
    assert all(trainer.feedback(rollout) == "The answer is correct." for rollout in batch.rollouts)
    assert trainer.state.log_history[0]["self_distill/has_teacher"] == 1.0


def test_a_right_answer_that_was_cut_off_is_not_called_incorrect(model_dir, tokenizer, tmp_path):
    config = AntiSDConfig(**distill_settings(tmp_path, context="gold", max_steps=1, max_completion_length=1))
    right = lambda completions, **kwargs: [1.0] * len(completions)  # noqa: E731
    trainer = build(AntiSDTrainer, config, str(model_dir), tokenizer, reward_funcs=right)
    seen = watch_signals(trainer)
    trainer.train()
    cut = [rollout for batch in seen for rollout in batch.rollouts if not rollout.finished]
    assert cut
    assert not any(rollout.correct for rollout in cut)
    assert {trainer.feedback(rollout) for rollout in cut} == {"The answer is correct."}


def telling(completions, log_extra, **kwargs):
    log_extra("feedback", [f"said {i}" for i in range(len(completions))])
    return [1.0] * len(completions)


def test_a_feedback_column_that_is_not_there_is_refused():
    assert feedback_of([{"a": "x"}, {"a": None}], "a", []) == ["x", None]
    assert feedback_of([{}, {}], None, ["told"]) == ["told", None]
    with pytest.raises(ValueError, match=r"feedback_column='b' is not a column of the dataset, which has \['a'\]"):
        feedback_of([{"a": "x"}], "b", [])


def test_feedback_of_the_reward_reaches_the_rollout(model_dir, tokenizer, tmp_path):
    data = sums().add_column("feedback", ["static"] * 100)
    config = AntiSDConfig(**distill_settings(tmp_path, context="gold", max_steps=1))
    trainer = build(AntiSDTrainer, config, str(model_dir), tokenizer, reward_funcs=telling, train_dataset=data)
    seen = watch_signals(trainer)
    trainer.train()
    for rollout in seen[0].rollouts:
        assert trainer.feedback(rollout) == f"said {rollout.index}"


@pytest.mark.parametrize(("trainer", "config"), [(RLRTTrainer, RLRTConfig), (OPSDTrainer, OPSDConfig)])
def test_the_token_log_has_everything_and_nulls_where_there_is_nothing(trainer, config, model_dir, tokenizer, tmp_path):
    args = config(**distill_settings(tmp_path, context="gold", max_steps=1, log_token_signals=True, num_generations=4))
    made = build(trainer, args, str(model_dir), tokenizer)
    made.context_builder = lambda rollout: None if rollout.index == 0 else rollout.gold
    made.train()
    rows = pyarrow.parquet.read_table(tmp_path / "token_signals/step_000001.parquet").to_pylist()
    assert len(rows) == 8
    for row in rows:
        numbers = ("student_logps", "teacher_logps", "log_ratio", "student_entropy", "teacher_entropy")
        for name in (*numbers, "weight"):
            assert len(row[name]) == len(row["tokens"])
            assert name == "weight" or all((value is None) == (row["context"] is None) for value in row[name])
        if row["context"] is not None:
            assert row["context_source"] == "custom"
            for s, t, u in zip(row["student_logps"], row["teacher_logps"], row["log_ratio"], strict=True):
                assert u == pytest.approx(t - s, abs=1e-5)
        assert (row["advantage"] is None) == (trainer is OPSDTrainer)
        assert row["step"] == 0 and isinstance(row["correct"], bool) and row["reward"] in (0.0, 1.0)
    assert [row["context"] is None for row in rows].count(True) == 1


@pytest.mark.parametrize("continuous", [False, True])
def test_evaluation_is_evaluation_under_continuous_batching(continuous, model_dir, tokenizer, tmp_path):
    """TRL leaves the model in training mode there."""
    batching = {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": {"num_blocks": 64, "max_batch_tokens": 64},
    }
    more = batching if continuous else {}
    config = AntiSDConfig(
        **distill_settings(tmp_path, context="gold", max_steps=1, num_generations_eval=2, per_device_eval_batch_size=8),
        antisd_warmup=1,
        **more,
    )
    trainer = build(AntiSDTrainer, config, str(model_dir), tokenizer)
    seen = watch_signals(trainer)
    trainer.train()
    steps = trainer.gate.steps
    metrics = trainer.evaluate(sums().select(range(4)))
    assert trainer.gate.steps == steps == 1
    assert {rollout.group_size for batch in seen[1:] for rollout in batch.rollouts} == {2}
    assert all("/eval/" in rollout.seed for batch in seen[1:] for rollout in batch.rollouts)
    assert "eval_antisd/gate" in metrics
    assert not trainer.model.training or not continuous
