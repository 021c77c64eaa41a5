"""`context_thinking="remove"`: other rollouts are shown to the teacher without their thinking part."""

import dataclasses

import pytest
import torch
from helpers import build, distill_settings, sums

from trl_selfdistill import RLRTConfig, RLRTTrainer
from trl_selfdistill.context.rollout import completion_text, without_thinking
from trl_selfdistill.trainer.correctness import make_correctness
from trl_selfdistill.trainer.rollouts import Batch, Setting, make_rollouts

TEXTS = [
    ("", ""),
    ("no marks \n", "no marks \n"),
    ("<think>a\nb</think>\n\n12", "12"),
    ("<think>a</think>1 <think>b</think>2", "1 2"),
    ("the prompt opened it</think>12", "12"),
    ("opened</think>1<think>b</think>2", "12"),
    ("12<think>cut off", "12"),
    ("<think>cut off", ""),
    ("<think>a</think>12<think>cut", "12"),
    ("<think>a<think>b</think>c</think>12", "12"),
    ("<think></think>", ""),
    ("a < b </thinking> <thinks>", "a < b </thinking> <thinks>"),
]


@pytest.mark.parametrize(("text", "rest"), TEXTS)
def test_what_is_left_of_a_text(text, rest):
    assert without_thinking(text) == rest
    assert completion_text(text, thinking=False) == rest
    assert completion_text(text) == text


def test_what_is_left_of_messages():
    messages = [
        {"role": "assistant", "content": "<think>cut", "reasoning_content": "secret"},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": [{"type": "text", "text": "<think>a</think>12"}], "thinking": "secret"},
    ]
    assert completion_text(messages, thinking=False) == "7\n12"
    assert completion_text(messages, thinking=False, tool_results=False) == "12"
    assert completion_text(messages) == "secret\n<think>cut\n7\nsecret\n<think>a</think>12"


def rollouts(keeps_thinking: bool, texts: list[str], rewards: list[float]):
    golds = ["<think>gold</think>12"] * len(texts)
    ids = [[5, 1]] * len(texts)
    batch = Batch([{}] * len(texts), [""] * len(texts), texts, ids, golds, golds, torch.tensor(rewards).unsqueeze(1))
    setting = Setting(
        correctness=make_correctness(None, 1.0, ["r"]),
        assesses=True,
        feedback_column=None,
        reward_names=["r"],
        reward_weights=torch.ones(1),
        end_ids={1},
        max_length=9,
        group_size=len(texts),
        seed="0",
        first=0,
        step=0,
    )
    return make_rollouts(batch, dataclasses.replace(setting, keeps_thinking=keeps_thinking))


def test_peers_lose_their_thinking_and_nothing_else_does():
    texts = ["<think>a</think>1", "<think>b</think>2", "<think>only thought</think> ", "c</think>3"]
    kept, removed = (rollouts(keeps, texts, [1.0, 1.0, 1.0, 0.0]) for keeps in (True, False))
    assert set(kept[0].peers) == {texts[1], texts[2]}
    assert removed[0].peers == ("2",)  # a blank text is no peer
    assert removed[0].wrong_peers == ("3",)
    assert set(removed[0].finished_peers) == {"2", "3"}
    for rollout, text in zip(removed, texts, strict=True):
        assert rollout.completion == text
        assert rollout.gold == rollout.feedback == "<think>gold</think>12"
    assert [r.correct for r in kept] == [r.correct for r in removed]


@pytest.mark.parametrize("choice", ["keep", "remove"])
def test_a_trainer_shows_what_the_configuration_says(choice, model, tokenizer, tmp_path):
    def scripted(prompts, trainer):
        ids = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts
        ]
        answer = [*tokenizer("<think>a</think>12")["input_ids"], tokenizer.eos_token_id]
        return {"prompt_ids": ids, "completion_ids": [answer] * len(prompts), "logprobs": None}

    config = RLRTConfig(**distill_settings(tmp_path, context_thinking=choice, context="peer", max_completion_length=24))
    trainer = build(
        RLRTTrainer,
        config,
        model,
        tokenizer,
        rollout_func=scripted,
        reward_funcs=lambda completions, **_: [1.0] * len(completions),
    )
    rows = [row for row in sums().select([7, 93]) for _ in range(4)]
    trainer._generate_and_score_completions(rows)
    lesson = trainer.signals.lesson
    shown = {context.text for context in lesson.views["teacher"].contexts}
    assert shown == {"12" if choice == "remove" else "<think>a</think>12"}
    assert {rollout.completion for rollout in lesson.rollouts} == {"<think>a</think>12"}


def test_another_value_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"context_thinking='drop' must be 'keep' or 'remove'"):
        RLRTConfig(**distill_settings(tmp_path, context_thinking="drop"))
