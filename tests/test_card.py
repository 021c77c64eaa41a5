"""The model card: what it says, and that nothing in it breaks out of its place or gives a secret away."""

import re
import socket
from types import SimpleNamespace

import contract
import pytest
from helpers import build, distill_settings
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

import trl_selfdistill
from trl_selfdistill import RLRTConfig, RLRTTrainer, SelfDistillConfig
from trl_selfdistill.record.card import command_of, fenced, in_table, scores_of, settings_of

TRAINERS = [name for name in trl_selfdistill.__all__ if name.endswith("Trainer")]


@pytest.fixture
def card(model_dir, tokenizer, tmp_path, monkeypatch):
    """The card that a checkpoint of a short run has. Nothing may be asked of the network."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    def make(name="RLRTTrainer", *, peft=None, **config):
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr("sys.argv", ["train.py", "--learning_rate", "1e-3", "--hub_token", "hf_secret"])
        trainer_class = getattr(trl_selfdistill, name)
        saved = {"save_strategy": "steps", "save_steps": 2, "hub_token": "hf_secret", "context": "gold"}
        given = contract.read_by(trainer_class, distill_settings(tmp_path, **{**saved, **config}))
        args = trainer_class.config_class(**given)
        trainer = build(trainer_class, args, str(model_dir), tokenizer, peft_config=peft)
        trainer.train()
        return ModelCard.load(tmp_path / "README.md"), trainer

    return make


@pytest.mark.parametrize("name", TRAINERS)
def test_a_saved_run_has_a_card_that_says_how_to_train_it_again(name, card):
    made, trainer = card(name)
    text = made.text
    assert {"trl-selfdistill", trainer._name.lower()} <= set(made.data.tags)
    assert made.data.library_name == "transformers"
    for part in (
        f"trained with {trainer._name}, a method introduced in",
        trainer._paper["title"],
        trainer._paper["citation"],
        f"$$ {trainer.equation} $$",
        "| optimiser steps | 2 |",
        "| rollouts per step | 8 |",
        "| `learning_rate` | `0.001` |",
        "python train.py --learning_rate 1e-3 --hub_token '***'",
        f"- trl-selfdistill {trl_selfdistill.__version__}",
        "@software{vonwerra2020trl,\n  title   = {{TRL: Transformers Reinforcement Learning}},",
    ):
        assert part in text, part
    if trainer.views:
        assert trainer.collator.template in text
        taught = re.search(r"\| rows with a teacher \| (\d+)% at the last logged step \|", text)
        assert taught is not None and int(taught[1]) > 0
    own = type(trainer.args).__dataclass_fields__.keys() - SelfDistillConfig.__dataclass_fields__
    assert own
    assert all(f"| `{field}` |" in text for field in own)
    assert "hf_secret" not in made.content
    assert "None](" not in text
    assert "{{" not in text.replace("{{TRL", "").replace(trainer._paper["citation"], "")


def test_an_adapters_card_keeps_trls_metadata(card, model_dir):
    made, trainer = card(peft=LoraConfig(r=2, target_modules="all-linear"))
    assert isinstance(made.data, ModelCardData)
    assert made.data.model_name == trainer.args.output_dir.split("/")[-1] or made.data.model_name is None


def test_an_evaluations_scores_and_the_dataset_are_on_the_card(model_dir, tokenizer, tmp_path):
    from tiny_policy import sums

    args = RLRTConfig(**distill_settings(tmp_path, per_device_eval_batch_size=8, num_generations_eval=2))
    trainer = build(RLRTTrainer, args, str(model_dir), tokenizer, context_builder=lambda rollout: rollout.gold)
    trainer.train()
    trainer.evaluate(sums().select(range(4)))
    trainer.create_model_card(model_name="mine", dataset_name="trl-lib/DeepMath-103K", tags="arithmetic")
    made = ModelCard.load(tmp_path / "README.md")
    assert "# mine" in made.text
    assert "[trl-lib/DeepMath-103K](https://huggingface.co/datasets/trl-lib/DeepMath-103K)" in made.text
    assert made.data.datasets == "trl-lib/DeepMath-103K"
    assert "arithmetic" in made.data.tags
    assert "| `eval_reward` |" in made.text
    assert "2 completions per problem" in made.text
    assert "test_card.test_an_evaluations_scores_and_the_dataset_are_on_the_card.<locals>.<lambda>" in made.text


@given(st.text())
def test_any_text_stays_in_its_cell_and_in_its_block(text):
    cell = in_table(text)
    assert "\n" not in cell
    assert not cell.replace("\\|", "").count("|")
    block = fenced(text).split("\n")
    assert block[0].removesuffix("text") not in text
    assert "\n".join(block[1:-1]) == text


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/home/me/train.py", "--a", "b c"], "python train.py --a 'b c'"),
        (["/usr/bin/trl-selfdistill", "rlrt", "--config", "x.yaml"], "trl-selfdistill rlrt --config x.yaml"),
        (["train.py", "--hub_token=abc", "--wandb-api-key", "k", "--lr", "1"],
         "python train.py '--hub_token=***' --wandb-api-key '***' --lr 1"),
        (["/venv/lib/ipykernel_launcher", "-f", "kernel.json"], None),
        ([], None),
    ],
)  # fmt: skip
def test_the_command(argv, shown):
    assert command_of(argv) == shown


def test_settings_leave_out_what_is_of_one_machine_or_a_secret():
    args = SimpleNamespace(own=1, beta=0.1, gamma=0, output_dir="/x", hub_token="t", report_to="wandb", api_key="k")
    defaults = {"beta": 0.0, "gamma": 0, "output_dir": "", "hub_token": None, "report_to": "none", "api_key": None}
    assert settings_of(args, defaults, ["own"]) == [("own", "`1`"), ("beta", "`0.1`")]


def test_scores_are_those_of_the_last_evaluation():
    history = [{"eval_reward": 0.1}, {"loss": 1.0}, {"eval_reward": 0.25, "eval_loss": 3.0}, {"loss": 2.0}]
    assert scores_of(history) == [("`eval_reward`", "0.25")]
    assert scores_of([{"loss": 1.0}]) == []
