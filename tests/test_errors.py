"""Bad input: each case gets a `ValueError` that names the field and the way out, before any training step."""

import math

import contract
import pytest
from datasets import Dataset, IterableDataset
from helpers import build, distill_settings, lenient_reward, settings, step_logs, sums, watch_signals
from trl import GRPOConfig

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill._compat import UnsupportedTRLError, check_trl
from trl_selfdistill.context.builders import verdict
from trl_selfdistill.context.rollout import Rollout


def make(model_dir, tokenizer, tmp_path, *, config=None, **kwargs):
    return build(
        RLRTTrainer, RLRTConfig(**distill_settings(tmp_path, **(config or {}))), str(model_dir), tokenizer, **kwargs
    )


CONVERSATION = [{"role": "user", "content": "1+1="}]
BAD_DATA = {
    "missing column": ({"prompt": [CONVERSATION]}, {"context": "gold"}, "privileged_context_column"),
    "missing fallback": ({"prompt": [CONVERSATION]}, {"context": "peer_else_gold"}, "context='peer'"),
    "numbers": ({"prompt": [CONVERSATION], "privileged_context": [2]}, {"context": "gold"}, "must hold strings"),
    "lists": ({"prompt": [CONVERSATION], "solution": [["2"]]}, {"context": "gold"}, "'solution' must hold strings"),
    "assistant last": (
        {"prompt": [[*CONVERSATION, {"role": "assistant", "content": "2"}]]},
        {},
        "context_placement='system'",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("split", ["train_dataset", "eval_dataset"])
def test_bad_datasets_are_refused_at_construction(name, streamed, split, model_dir, tokenizer, tmp_path):
    rows, config, message = BAD_DATA[name]
    dataset = Dataset.from_dict(rows)
    if streamed:
        plain = dataset.to_list()
        dataset = IterableDataset.from_generator(lambda: iter(plain))
    with pytest.raises(ValueError, match=message):
        make(model_dir, tokenizer, tmp_path, config=config, **{split: dataset})


def test_an_optional_solution_of_another_kind_is_left_to_the_reward_function(model_dir, tokenizer, tmp_path):
    dataset = Dataset.from_dict({"prompt": [CONVERSATION] * 8, "solution": [2] * 8})
    make(model_dir, tokenizer, tmp_path, train_dataset=dataset).train()


def test_so_it_is_in_a_stream(model_dir, tokenizer, tmp_path):
    rows = [{"prompt": CONVERSATION, "solution": 2}] * 8
    dataset = IterableDataset.from_generator(lambda: iter(rows))
    make(model_dir, tokenizer, tmp_path, train_dataset=dataset).train()


def test_plain_text_with_chat_markers_is_refused(model_dir, tokenizer, tmp_path):
    prompt = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    dataset = Dataset.from_dict({"prompt": [prompt] * 8, "solution": ["2"] * 8})
    with pytest.raises(ValueError, match=r"chat markers \(<\|assistant\|>.*conversational prompts"):
        make(model_dir, tokenizer, tmp_path, train_dataset=dataset)
    system = {"context_placement": "system", "teacher_template": None}
    make(model_dir, tokenizer, tmp_path, config=system, train_dataset=dataset)


@pytest.mark.parametrize("trainer", [trainer for trainer in contract.trainers().values() if trainer.views])
def test_plain_text_comes_after_the_context(trainer, model_dir, tokenizer, tmp_path):
    dataset = Dataset.from_dict({"prompt": ["1+1="] * 8, "solution": ["2"] * 8})
    config = trainer.config_class(**{**distill_settings(tmp_path), "teacher_template": None})
    built = build(trainer, config, str(model_dir), tokenizer, train_dataset=dataset)
    out = built.collator(["1+1="], ["2"], feedback=["right"])
    assert tokenizer.decode(out["teacher_prompt_ids"][0]).endswith("1+1=")


def test_a_save_inside_a_batch_of_rollouts_warns(tmp_path):
    save = {"save_strategy": "steps", "num_iterations": 2}
    with pytest.warns(UserWarning, match="save_steps=3 saves inside a batch"):
        RLRTConfig(**distill_settings(tmp_path, **save, save_steps=3))
    RLRTConfig(**distill_settings(tmp_path, **save, save_steps=4))  # warnings are errors


def test_several_rewards_without_a_choice_warn(model_dir, tokenizer, tmp_path):
    def length(completions, **kwargs):
        return [float(len(text)) for text in completions]

    with pytest.warns(UserWarning, match="'lenient_reward', tells whether a rollout is correct"):
        make(model_dir, tokenizer, tmp_path, reward_funcs=[lenient_reward, length])


def test_a_wrong_row_in_a_stream_is_refused_when_it_comes(model_dir, tokenizer, tmp_path):
    rows = [{"prompt": CONVERSATION, "privileged_context": value} for value in ("2", "2", {"a": 1})]
    dataset = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make(model_dir, tokenizer, tmp_path, config={"context": "gold", "max_steps": 5}, train_dataset=dataset)
    with pytest.raises(ValueError, match="'privileged_context' must hold strings"):
        trainer.train()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"teacher_template": "no place for it"}, "teacher_template.*{context}"),
        (
            {"teacher_template": "{context}{prompt}", "context_placement": "system"},
            "teacher_template.*context_placement",
        ),
        ({"teacher_template": None, "context_placement": "assistant"}, "context_placement"),
        ({"context": "nonsense"}, "context='nonsense'"),
        ({"max_context_tokens": 0}, "max_context_tokens"),
        ({"teacher_model_kind": "frozen"}, "teacher_model_kind"),
        ({"num_generations": 1}, "at least 2 generations"),
    ],
)
def test_bad_settings_are_refused_in_the_configuration(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RLRTConfig(**distill_settings(tmp_path, **config))


def test_no_reward_and_an_unknown_correctness_reward(model_dir, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="reward"):
        make(model_dir, tokenizer, tmp_path, reward_funcs=None)
    with pytest.raises(ValueError, match=r"correctness_reward='accuracy'.*lenient_reward"):
        make(model_dir, tokenizer, tmp_path, config={"correctness_reward": "accuracy"})


def test_the_configuration_of_another_algorithm_is_refused(model_dir, tokenizer, tmp_path):
    from trl_selfdistill import SelfDistillConfig

    with pytest.raises(ValueError, match="RLRTConfig"):
        build(RLRTTrainer, SelfDistillConfig(**distill_settings(tmp_path)), str(model_dir), tokenizer)


@pytest.mark.parametrize("version", ["1.14.2", "1.17.0", "2.0.0", "0.29.1"])
def test_unknown_trl_versions_are_refused_with_the_range(version):
    with pytest.raises(UnsupportedTRLError, match=r">=1.15,<1.17") as caught:
        check_trl(version)
    assert version in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("version", ["1.15.0", "1.15.3", "1.16.0", "1.16.2.dev0"])
def test_supported_trl_versions_pass(version):
    check_trl(version)


def test_nan_and_none_rewards_are_never_correct_and_train_as_in_grpo(model_dir, tokenizer, tmp_path):
    def some_nan(completions, **kwargs):
        return [(1.0, math.nan, None, 0.0)[i % 4] for i in range(len(completions))]

    trainer = make(model_dir, tokenizer, tmp_path, reward_funcs=some_nan)
    seen = watch_signals(trainer)
    trainer.train()
    finished = [entry["completions/clipped_ratio"] for entry in step_logs(trainer)]
    assert all(not batch.scores.correct[i].item() for batch in seen for i in range(8) if i % 4)
    assert finished[0] == 1.0 or any(batch.scores.correct.any() for batch in seen)
    assert all(math.isfinite(entry["loss"]) for entry in step_logs(trainer))


def test_an_end_token_alone_is_a_completion_but_no_context(model_dir, tokenizer, tmp_path):
    def empty(prompts, trainer):
        ids = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts
        ]
        return {"prompt_ids": ids, "completion_ids": [[tokenizer.eos_token_id]] * len(prompts), "logprobs": None}

    trainer = make(
        model_dir,
        tokenizer,
        tmp_path,
        rollout_func=empty,
        reward_funcs=lambda completions, **kwargs: [1.0] * len(completions),
    )
    trainer.train()
    entry = step_logs(trainer)[0]
    assert entry["self_distill/correct"] == 1.0
    assert entry["self_distill/has_teacher"] == 0.0


def test_truncated_completions_are_not_correct(model_dir, tokenizer, tmp_path):
    trainer = make(
        model_dir,
        tokenizer,
        tmp_path,
        config={"max_completion_length": 1},
        reward_funcs=lambda completions, **kwargs: [1.0] * len(completions),
    )
    trainer.train()
    for entry in step_logs(trainer):
        assert entry["self_distill/correct"] == pytest.approx(1 - entry["completions/clipped_ratio"])


def test_a_script_that_changes_only_the_class_keeps_its_grpo_config(model_dir, tokenizer, tmp_path):
    args = GRPOConfig(**settings(tmp_path, beta=0.02, gradient_accumulation_steps=2))
    trainer = build(RLRTTrainer, args, str(model_dir), tokenizer, reward_funcs=[lenient_reward], train_dataset=sums())
    assert type(trainer.args) is RLRTConfig
    assert (trainer.args.rlrt_strength, trainer.args.rlrt_clip, trainer.args.context) == (0.5, 1.0, "peer")
    assert (trainer.args.beta, trainer.args.generation_batch_size) == (0.02, 16)
    assert type(args) is GRPOConfig
    trainer.train()
    assert "self_distill/log_ratio" in step_logs(trainer)[0]


def no_feedback(rollout):
    return None


def test_a_feedback_function_that_says_nothing_leaves_it_to_the_verdict(model_dir, tokenizer, tmp_path):
    config = AntiSDConfig(**settings(tmp_path, context="gold", antisd_feedback="test_errors.no_feedback"))
    trainer = build(AntiSDTrainer, config, str(model_dir), tokenizer)
    trainer.train()
    rollout = Rollout(row={}, completion="2", correct=True)
    assert trainer.feedback(rollout) == verdict(rollout)


def test_feedback_that_is_no_text_is_refused_where_the_template_asks_for_it(model_dir, tokenizer, tmp_path):
    dataset = sums().add_column("feedback", list(range(100)))
    make(model_dir, tokenizer, tmp_path, config={"context": "gold"}, train_dataset=dataset).train()
    config = {"context": "gold", "teacher_template": "{prompt}{context}{feedback}", "feedback_column": "feedback"}
    with pytest.raises(ValueError, match=r"{feedback} must be a string or None, got int"):
        make(model_dir, tokenizer, tmp_path, config=config, train_dataset=dataset).train()


def test_a_context_that_is_a_function_belongs_to_the_trainer(tmp_path):
    with pytest.raises(ValueError, match="context_builder"):
        RLRTConfig(**distill_settings(tmp_path, context=len))


def test_a_control_that_asks_the_policy_about_itself_is_warned_of(tmp_path, caplog):
    RLRTConfig(**distill_settings(tmp_path, context="none"))
    assert "context='none' with teacher_model_kind='live'" in caplog.text
    caplog.clear()
    for other in ({"teacher_model_kind": "base"}, {"teacher_chat_template_kwargs": {"enable_thinking": True}}):
        RLRTConfig(**distill_settings(tmp_path, context="none", **other))
    assert "the signal is 0" not in caplog.text
