"""One teacher prompt in the log of a run."""

import logging

from helpers import build, distill_settings

from trl_selfdistill import OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer


def test_the_first_teacher_prompt_is_logged_once_with_its_special_tokens(model, tokenizer, tmp_path, caplog):
    config = RLRTConfig(**distill_settings(tmp_path, max_steps=2, context="gold"))
    trainer = build(RLRTTrainer, config, model, tokenizer)
    with caplog.at_level(logging.INFO, "trl_selfdistill"):
        trainer.train()
    (said,) = [record for record in caplog.records if record.name == "trl_selfdistill"]
    assert said.levelno == logging.INFO
    text = said.getMessage().split("\n---")[1].removeprefix("\n")
    assert text.startswith("<|user|>[")  # the hint template
    assert text.endswith("<|end|><|assistant|>")


def test_without_a_teacher_nothing_is_shown_until_there_is_one(model, tokenizer, tmp_path, caplog):
    def late(rollout):
        return "12" if rollout.step else None

    config = OPSDConfig(**distill_settings(tmp_path, max_steps=3, num_generations=2))
    trainer = build(OPSDTrainer, config, model, tokenizer, context_builder=late)
    with caplog.at_level(logging.INFO, "trl_selfdistill"):
        trainer.train()
    assert sum(record.name == "trl_selfdistill" for record in caplog.records) == 1
