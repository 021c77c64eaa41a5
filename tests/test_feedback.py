"""What was said of a rollout as its teacher's context: by an environment, a reward, a `rollout_func`, or nobody."""

import logging

import pytest
import test_modes
from datasets import Dataset
from helpers import build, distill_settings, watch_signals
from test_modes import Riddle, guess, scripted
from tiny_policy import sums

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, Context, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.context.builders import feedback
from trl_selfdistill.context.rollout import Rollout
from trl_selfdistill.trainer.example import SAID, example_prompts
from trl_selfdistill.trainer.feedback import words_of

tool_user = test_modes.tool_user  # a fixture


class Talking(Riddle):
    """A riddle that says how it went, once the reward was given."""

    feedback: str | None = None

    def reset(self, **row) -> str:
        self.feedback = None  # environments are used again
        return super().reset(**row)

    def get_reward(self) -> float:
        reward = super().get_reward()
        self.feedback = f"You tried {', '.join(self.tried)}." if self.tried else None
        return reward


class WithATool(Riddle):
    def feedback(self) -> str:
        """Ask for feedback."""
        return "never read as one's own words"


def test_the_builder():
    common = {"row": {}, "completion": "y", "correct": True}
    assert feedback(Rollout(**common)) is None
    assert feedback(Rollout(**common, feedback="Too small.")) == Context("Too small.", "feedback")


def test_an_attribute_is_read_and_a_tool_of_that_name_is_not_called():
    talking = Talking()
    talking.feedback = "Well done."
    assert words_of([talking, Talking(), Riddle(), WithATool()]) == ["Well done.", None, None, None]
    assert words_of(None) == []


def riddles(tool_user, folder, environment=Talking, first=None, **settings):
    model, tokenizer = tool_user
    config = RLRTConfig(**distill_settings(folder, max_completion_length=128, context="feedback", **settings))
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "Solve "}], "riddle": "2+1="}] * 8)
    made = build(
        RLRTTrainer, config, model, tokenizer, train_dataset=rows, environment_factory=environment, reward_funcs=None
    )
    scripted(made, first or [guess(3), guess(5), "ok<|end|>"], "ok<|end|>")
    return made


def test_an_environments_own_words(tool_user, tmp_path):
    made = riddles(tool_user, tmp_path, max_steps=1)
    seen = watch_signals(made)
    made.train()
    said = ["You tried 3.", "You tried 5.", None]
    assert [rollout.feedback for rollout in seen[0].rollouts] == [said[i % 3] for i in range(8)]
    contexts = seen[0].lesson.views["teacher"].contexts
    assert contexts == [text and Context(text, "feedback") for text in (said[i % 3] for i in range(8))]
    assert seen[0].teacher["has_context"].tolist() == [text is not None for text in (said[i % 3] for i in range(8))]
    for rollout, ids, mask in zip(seen[0].rollouts, seen[0].completion_ids, seen[0].tool_mask, strict=True):
        if rollout.feedback is not None:  # what the environment answers while it is played is never the model's
            assert made._tokenizer.decode(ids[mask == 0]).startswith("<|tool|>")


def test_a_rewards_words_come_before_the_environments(tool_user, tmp_path):
    def says(completions, log_extra, **kwargs):
        log_extra("feedback", [f"number {i}" for i in range(len(completions))])
        return [0.0] * len(completions)

    made = riddles(tool_user, tmp_path, max_steps=1)
    made.reward_funcs[0] = says
    seen = watch_signals(made)
    made.train()
    assert [rollout.feedback for rollout in seen[0].rollouts] == [f"number {i}" for i in range(8)]


def test_silence_is_told_once(tool_user, tmp_path, caplog):
    made = riddles(tool_user, tmp_path, WithATool, max_steps=2)
    with caplog.at_level(logging.WARNING, "trl_selfdistill.trainer.feedback"):
        made.train()
    said = [record.getMessage() for record in caplog.records if "context='feedback'" in record.getMessage()]
    assert len(said) == 1 and "any of these 8 rollouts" in said[0]
    assert [e["self_distill/has_teacher"] for e in made.state.log_history if "loss" in e] == [0.0, 0.0]


@pytest.mark.parametrize(("trainer", "config"), [(OPSDTrainer, OPSDConfig), (RLRTTrainer, RLRTConfig)])
def test_where_nobody_can_say_anything_it_is_refused(trainer, config, tokenizer, tmp_path):
    """Before anything is loaded. A reward model gives numbers, and no words."""
    model = {} if trainer is OPSDTrainer else {"reward_funcs": "a/reward-model"}
    with pytest.raises(ValueError, match=r"context='feedback'.*nothing here can say anything.*log_extra.*attribute"):
        args = config(**distill_settings(tmp_path, context="feedback"))
        build(trainer, args, "no/such-model", tokenizer, **{"reward_funcs": None, **model})


def test_a_column_may_say_it(model, tokenizer, tmp_path):
    settings = distill_settings(tmp_path, context="feedback", feedback_column="solution", max_steps=1)
    made = build(OPSDTrainer, OPSDConfig(**settings), model, tokenizer, reward_funcs=None)
    seen = watch_signals(made)
    made.train()
    contexts = seen[0].lesson.views["teacher"].contexts
    assert contexts == [Context(rollout.row["solution"], "feedback") for rollout in seen[0].rollouts]


def test_feedback_is_not_called_a_solution(model_dir, tokenizer, tmp_path):
    for trainer, config in ((RLRTTrainer, RLRTConfig), (AntiSDTrainer, AntiSDConfig)):
        settings = distill_settings(tmp_path, context="feedback", teacher_template=None)
        made = build(trainer, config(**settings), str(model_dir), tokenizer, train_dataset=sums())
        text = example_prompts(made)["teacher"]
        assert "what was said of your attempt at the task below" in text and SAID in text
        assert "solution" not in text
