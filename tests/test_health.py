"""The health checks in training: each thing that is made to go wrong is seen, and what goes well is left alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from helpers import build, distill_settings, exact_reward, run_trainer, step_logs, sums
from test_learning import train as learn

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.trainer.health_check import UnhealthyRunError, no_context

PAIRS = {"RLRT": (RLRTTrainer, RLRTConfig), "AntiSD": (AntiSDTrainer, AntiSDConfig), "OPSD": (OPSDTrainer, OPSDConfig)}
LOGGER = "trl_selfdistill.trainer.health_check"


def make(name: str, model: Any, tokenizer: Any, folder: Path, data: dict[str, Any] | None = None, **config: Any) -> Any:
    trainer_class, config_class = PAIRS[name]
    return build(trainer_class, config_class(**distill_settings(folder, **config)), model, tokenizer, **(data or {}))


def said(caplog: Any) -> dict[str, str]:
    """The complaints by the name of their check. Each is made once."""
    messages = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    found = {message.split("'")[1]: message for message in messages}
    assert len(found) == len(messages)
    return found


def never(completions: list, **kwargs: Any) -> list[float]:
    return [0.0] * len(completions)


def without_gold() -> Dataset:
    """Sums of which one has a solution, and that one comes late."""
    rows = sums().to_list()[:16]
    return Dataset.from_list([{**row, "solution": row["solution"] if i == 15 else ""} for i, row in enumerate(rows)])


DEAD = {
    "RLRT": ({"context": "peer"}, "RLRT is plain GRPO now, because no group had a correct rollout (2 steps in a row)"),
    "AntiSD": ({"context": "own_peer"}, "AntiSD is plain GRPO now, because no group had a correct rollout"),
    "OPSD": ({}, "OPSD is training on nothing now, because no row has a gold solution (privileged_context_column="),
}


@pytest.mark.filterwarnings("ignore:.*have no gold solution")
@pytest.mark.parametrize("name", PAIRS)
def test_a_dead_teacher(name, model, tokenizer, tmp_path, caplog):
    config, message = DEAD[name]
    data = {"reward_funcs": never, "train_dataset": without_gold()}
    if name == "OPSD":
        config = {"context": "gold", "shuffle_dataset": False, "num_generations": 8}
    thresholds = {"no_teacher": 2}
    make(name, model, tokenizer, tmp_path, data, **config, health_thresholds=thresholds).train()
    assert message in said(caplog)["no_teacher"]


def test_a_teacher_of_ones_own_that_says_nothing(model, tokenizer, tmp_path, caplog):
    data = {"context_builder": lambda rollout: None}
    make("RLRT", model, tokenizer, tmp_path, data, health_thresholds={"no_teacher": 1}).train()
    assert "because the context_builder returned no text for any rollout" in said(caplog)["no_teacher"]
    args = RLRTConfig(**distill_settings(tmp_path, context="builtins.repr"))
    assert no_context(args, own_builder=False).startswith("the function of context='builtins.repr' returned no text")


def test_the_reasons_of_the_other_contexts():
    def reason(context: str, **kwargs: Any) -> str:
        return no_context(
            SimpleNamespace(context=context, privileged_context_column="solution"), own_builder=False, **kwargs
        )

    assert "nothing was said of any rollout" in reason("peer_else_feedback")
    assert reason("feedback") == "nothing was said of any rollout"
    assert "about the same task" in reason("memory")
    assert "correct" not in reason("peer", views=5)  # all of a group may be right: then no wrong hint is there


def thinking(tokenizer: Any) -> Any:
    """A chat template with a thinking mode, which opens the answer in another way."""
    start = "{{ '<|assistant|>' }}"
    assert start in tokenizer.chat_template
    # Two digits: what comes next is the end, as sure as `<think>` is where a thinking model was not told to be silent.
    opened = "{{ '<|assistant|>' + ('10' if enable_thinking else '') }}"
    tokenizer.chat_template = tokenizer.chat_template.replace(start, opened)
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("mismatched", [True, False])
def test_a_mismatched_template(mismatched, tiny, tmp_path, caplog):
    model, tokenizer = tiny
    config = {"context": "gold", "num_generations": 8, "per_device_train_batch_size": 64, "max_steps": 1}
    kwargs = {"teacher_chat_template_kwargs": {"enable_thinking": mismatched}}
    data = {"reward_funcs": exact_reward}
    make("RLRT", model, thinking(tokenizer), tmp_path, data, **config, **kwargs).train()
    assert ("first_tokens" in said(caplog)) == mismatched


def leaking(tokenizer: Any, since: int) -> Any:
    """A `rollout_func` that speaks of the solution from step `since` on."""

    def rollouts(prompts: list, trainer: Any) -> dict[str, Any]:
        text = "As in the given solution." if trainer.state.global_step >= since else "I add them up."
        ids = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts
        ]
        completion = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        return {"prompt_ids": ids, "completion_ids": [completion] * len(prompts), "logprobs": None}

    return rollouts


@pytest.mark.parametrize(("since", "names"), [(0, {"leakage"}), (9, {"leakage_rise"})])
def test_a_leaking_policy(since, names, model, tokenizer, tmp_path, caplog):
    data = {"rollout_func": leaking(tokenizer, since)}
    thresholds = {"no_spread": 99}
    config = {"context": "gold", "max_steps": 11, "learning_rate": 0.0, "max_completion_length": 32}
    make("OPSD", model, tokenizer, tmp_path, data, **config, health_thresholds=thresholds).train()
    assert said(caplog).keys() & {"leakage", "leakage_rise"} == names


def test_two_end_tokens(model, tokenizer, tmp_path, caplog):
    other = tokenizer.convert_tokens_to_ids("<|system|>")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, other]

    def rollouts(prompts: list, trainer: Any) -> dict[str, Any]:
        ids = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts
        ]
        ends = [(tokenizer.eos_token_id, other)[i % 2] for i in range(len(prompts))]
        return {"prompt_ids": ids, "completion_ids": [[20, end] for end in ends], "logprobs": None}

    trainer = make("RLRT", model, tokenizer, tmp_path, {"rollout_func": rollouts}, context="gold", max_steps=1)
    trainer.train()
    assert f"token {other} (50%)" in said(caplog)["end_split"]
    entry = step_logs(trainer)[0]
    assert entry[f"end_tokens/{other}_share"] == entry[f"end_tokens/{tokenizer.eos_token_id}_share"] == 0.5
    assert entry[f"end_tokens/{other}_student_logp"] < entry[f"end_tokens/{tokenizer.eos_token_id}_student_logp"] < 0


def test_contexts_that_are_cut_and_rewards_without_spread(model, tokenizer, tmp_path, caplog):
    rows = [{**row, "solution": "one two three"} for row in sums().to_list()]
    data = {"train_dataset": Dataset.from_list(rows), "reward_funcs": never}
    make("RLRT", model, tokenizer, tmp_path, data, context="gold", max_context_tokens=3, max_steps=5).train()
    assert said(caplog).keys() >= {"cut_contexts", "no_spread"}


def test_stop_and_ignore(model, tokenizer, tmp_path, caplog):
    config = {"context": "peer", "health_thresholds": {"no_teacher": 1}}
    trainer = make("RLRT", model, tokenizer, tmp_path, {"reward_funcs": never}, **config, health_action="stop")
    with pytest.raises(UnhealthyRunError, match="RLRT is plain GRPO now, because no group had a correct rollout"):
        trainer.train()
    assert trainer.state.global_step == 1
    make("RLRT", model, tokenizer, tmp_path, {"reward_funcs": never}, **config, health_action="ignore").train()
    assert not said(caplog)


def test_a_resumed_run_does_not_repeat_itself(model_dir, tokenizer, tmp_path, caplog):
    config = {"context": "peer", "health_thresholds": {"no_teacher": 1}, "save_strategy": "steps", "save_steps": 1}
    make("RLRT", str(model_dir), tokenizer, tmp_path, {"reward_funcs": never}, **config).train()
    assert "no_teacher" in said(caplog)
    caplog.clear()
    resumed = make("RLRT", str(model_dir), tokenizer, tmp_path, {"reward_funcs": never}, **config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 2
    assert not said(caplog)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_stop_together(processes, model_dir, tmp_path):
    thresholds = {"no_teacher": 2}
    config = distill_settings(
        tmp_path / "run", per_device_train_batch_size=8 // processes, health_action="stop", health_thresholds=thresholds
    )
    with pytest.raises(AssertionError, match="ended with"):
        run_trainer(
            tmp_path,
            trainer="RLRTTrainer",
            model=model_dir,
            config=config,
            processes=processes,
            scripted=True,
            taught=[],
        )
    for rank in range(processes):
        assert "UnhealthyRunError: Health check 'no_teacher'" in (tmp_path / f"job.{rank}.out").read_text()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"health_action": "shout"}, "health_action='shout'"),
        ({"health_thresholds": {"leakge": 1}}, "Did you mean 'leakage'"),
        ({"health_thresholds": '{"leakage": "many"}'}, "must be a number of at least 0"),
        ({"health_thresholds": "leakage=1"}, "no mapping"),
    ],
)
def test_the_configuration_names_what_is_wrong(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RLRTConfig(**distill_settings(tmp_path, **config))


def test_thresholds_from_a_command_line(tmp_path):
    args = RLRTConfig(**distill_settings(tmp_path, health_thresholds='{"no_teacher": 20, "leakage": 0.1}'))
    assert args.health_thresholds == {"no_teacher": 20, "leakage": 0.1}


@pytest.mark.slow
@pytest.mark.apart
def test_a_collapsing_run_is_seen_and_a_healthy_one_is_not(tiny, tmp_path, caplog):
    start = {name: tensor.clone() for name, tensor in tiny[0].state_dict().items()}
    for name in ("antisd", "rlrt"):
        learn(tiny, tmp_path, name, max_steps=120, logging_steps=1)
        assert not said(caplog)
        tiny[0].load_state_dict(start)
    after, _ = learn(tiny, tmp_path, "antisd_collapse", logging_steps=1)
    assert after < 0.05
    names = {record.getMessage().split("'")[1] for record in caplog.records if record.name == LOGGER}
    assert names & {"gate_open", "entropy_low", "entropy_high"}  # how it collapses depends on the processor's rounding
