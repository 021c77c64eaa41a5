"""Rollouts that are not the policy's own are seen in the step that makes them."""

import copy
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import build, distill_settings, step_logs
from hypothesis import given
from hypothesis import strategies as st

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.maths import TokenScores, surprise
from trl_selfdistill.trainer.sampler_check import (
    DIFFERENCE,
    SamplerCheck,
    SamplerMismatchError,
    sampler_metrics,
    samples_exactly,
)

PAIRS = {"RLRT": (RLRTTrainer, RLRTConfig), "AntiSD": (AntiSDTrainer, AntiSDConfig), "OPSD": (OPSDTrainer, OPSDConfig)}
MANY = {"per_device_train_batch_size": 128, "num_generations": 8, "max_steps": 1, "context": "gold"}


@torch.no_grad()
def disturb(model: Any, scale: float = 2.0) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(scale * parameter.std() * torch.randn_like(parameter))


def sampler(model: Any, tokenizer: Any) -> Any:
    """A `rollout_func` that samples from `model`, and says with which log-probabilities."""

    @torch.no_grad()
    def sample(prompts: list, trainer: Any) -> dict[str, Any]:
        texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True) for p in prompts]
        ids, completions, logps = [text["input_ids"] for text in texts], [], []
        for prompt in ids:
            tokens: list[int] = []
            own: list[float] = []
            while len(tokens) < 4 and tokenizer.eos_token_id not in tokens:
                out = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].float().log_softmax(-1)
                tokens.append(int(torch.multinomial(out.exp(), 1)))
                own.append(out[tokens[-1]].item())
            completions.append(tokens)
            logps.append(own)
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": logps}

    return sample


def test_logprobs_may_come_as_a_list_per_token_with_the_sampled_one_first():
    zeros, mask = torch.zeros(2, 3), torch.tensor([[True, True, False], [True, True, True]])
    scores = TokenScores(zeros - 1, zeros, zeros, zeros, mask, torch.tensor([True, True]), 0.0, training=True)
    sampled = torch.tensor([[-1.5, math.nan, -9.0], [-1.0, -1.0, -0.5]])
    nested = torch.stack([sampled, zeros - 7], dim=-1)
    flat, found = (sampler_metrics({"sampling_per_token_logps": s}, scores)[DIFFERENCE] for s in (sampled, nested))
    torch.testing.assert_close(flat, found, equal_nan=True)
    assert flat[~flat.isnan()].tolist() == [0.5, 0.0, 0.0, 0.5]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("stale", [True, False])
def test_a_sampler_with_stale_weights_is_caught_in_one_step(name, stale, model, tokenizer, tmp_path, caplog):
    other = copy.deepcopy(model).eval()
    if stale:
        disturb(other)
    trainer_class, config_class = PAIRS[name]
    settings = {**MANY, "per_device_train_batch_size": 16}
    config = config_class(**distill_settings(tmp_path, **settings, sampler_mismatch="stop"))
    trainer = build(trainer_class, config, model, tokenizer, rollout_func=sampler(other, tokenizer))
    if stale:
        with pytest.raises(SamplerMismatchError, match=r"nats away from the policy's.*sampler_mismatch='ignore'"):
            trainer.train()
        assert trainer.state.global_step == 0
    else:
        trainer.train()
        assert step_logs(trainer)[0]["self_distill/sampler_difference"] < 1e-4


def stale_generation(trainer: Any) -> None:
    """TRL's own generation, with other weights in the model while it lasts."""
    generate = trainer._generate_single_turn

    def generating(*args: Any, **kwargs: Any) -> Any:
        state = copy.deepcopy(trainer.model.state_dict())
        disturb(trainer.model)
        try:
            return generate(*args, **kwargs)
        finally:
            trainer.model.load_state_dict(state)

    trainer._generate_single_turn = generating


@pytest.mark.parametrize("engine", [{}, {"use_transformers_continuous_batching": True}], ids=["generate", "continuous"])
@pytest.mark.parametrize("stale", [True, False])
def test_a_sampler_without_log_probabilities_is_judged_by_the_surprise(
    engine, stale, model, tokenizer, tmp_path, caplog
):
    config = RLRTConfig(**distill_settings(tmp_path, **MANY, **engine))
    trainer = build(RLRTTrainer, config, model, tokenizer)
    if stale:
        stale_generation(trainer)
    with caplog.at_level(logging.WARNING, "trl_selfdistill"):
        trainer.train()
    said = [r.message for r in caplog.records if "do not come from the policy" in r.message]
    assert len(said) == stale
    found = abs(step_logs(trainer)[0]["self_distill/surprise"])
    assert found > 0.1 if stale else found < 0.3  # 300 tokens: a standard error of 0.05, and the draw has no fixed seed


def test_a_warning_comes_once_and_ignore_looks_at_nothing(model, tokenizer, tmp_path, caplog):
    for action, warnings in (("warn", 1), ("ignore", 0)):
        config = RLRTConfig(**distill_settings(tmp_path, **{**MANY, "max_steps": 2}, sampler_mismatch=action))
        trainer = build(RLRTTrainer, config, copy.deepcopy(model), tokenizer)
        stale_generation(trainer)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "trl_selfdistill"):
            trainer.train()
        assert sum("do not come from the policy" in r.message for r in caplog.records) == warnings
        assert ("self_distill/surprise" in step_logs(trainer)[0]) == bool(warnings)


@pytest.mark.parametrize(
    "cut",
    [
        {"top_p": 0.9},
        {"top_k": 5},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"generation_kwargs": {"num_beams": 1}},
    ],
    ids=str,
)
def test_the_surprise_is_not_measured_where_tokens_are_left_out_of_the_draw(cut, tmp_path):
    assert samples_exactly(RLRTConfig(**distill_settings(tmp_path)), own_rollouts=False)
    assert not samples_exactly(RLRTConfig(**distill_settings(tmp_path)), own_rollouts=True)
    assert not samples_exactly(RLRTConfig(**distill_settings(tmp_path, **cut)), own_rollouts=False)


@pytest.mark.parametrize("tokens", [8, 400])
def test_a_few_likely_tokens_in_a_row_are_no_stale_sampler(tokens, tmp_path):
    """Each token has probability 0.9: eight likely ones come in 43 % of all batches, with a standard error of 0."""
    logps = torch.full((1, tokens), 0.9).log()
    entropy = torch.full_like(logps, -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)))
    zeros, mask = torch.zeros_like(logps), torch.ones_like(logps, dtype=torch.bool)
    scores = TokenScores(logps, zeros, entropy, zeros, mask, torch.tensor([True]), 0.0, training=True)
    metric_log: Any = SimpleNamespace(all_tokens=lambda values: values)
    args = RLRTConfig(**distill_settings(tmp_path, sampler_mismatch="stop"))
    trainer = SimpleNamespace(args=args, metric_log=metric_log, rollout_func=None, scores_old_policy=True)
    check = SamplerCheck(trainer)
    if tokens == 8:
        assert check.see(scores, None)["self_distill/surprise"] < -0.2
    else:
        with pytest.raises(SamplerMismatchError):
            check.see(scores, None)


@given(st.integers(0, 10**6))
def test_the_mean_surprise_is_zero_for_ones_own_tokens_and_known_for_anothers(seed):
    draw = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 7, generator=draw, dtype=torch.float64).softmax(-1)
    entropy = -(p * p.log()).sum()
    for other in (p, q):
        tokens = torch.multinomial(other, 4000, replacement=True, generator=draw)
        mean, error = surprise((-p.log()[tokens] - entropy).float())
        assert abs(mean - (-(other * p.log()).sum() - entropy)) < 6 * error + 1e-5


def test_settings_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"sampler_mismatch='panic' must be one of"):
        RLRTConfig(**distill_settings(tmp_path, sampler_mismatch="panic"))
    with pytest.raises(ValueError, match=r"sampler_mismatch_threshold=0\.0 must be positive"):
        RLRTConfig(**distill_settings(tmp_path, sampler_mismatch_threshold=0.0))


def test_a_few_tokens_are_no_evidence(model, tokenizer, tmp_path, caplog):
    """Two tokens that are alike have a standard error of 0."""
    config = RLRTConfig(**distill_settings(tmp_path, **{**MANY, "per_device_train_batch_size": 16}))
    trainer = build(RLRTTrainer, config, model, tokenizer)
    stale_generation(trainer)
    with caplog.at_level(logging.WARNING, "trl_selfdistill"):
        trainer.train()
    assert "do not come from the policy" not in caplog.text
    assert "self_distill/surprise" in step_logs(trainer)[0]


def test_a_batch_whose_rows_are_chosen_by_their_outcome_is_not_judged(model, tokenizer, tmp_path):
    """Right rollouts are less surprising than the policy's entropy says, though they are its own."""
    config = RLRTConfig(**distill_settings(tmp_path, **MANY, sampler_mismatch="stop"))
    chosen = {"context_builder": lambda rollout: rollout.gold if rollout.correct else None}
    trainer = build(RLRTTrainer, config, model, tokenizer, **chosen)
    trainer.train()
    assert "self_distill/surprise" not in step_logs(trainer)[0]


def test_a_divergence_is_not_judged_by_a_policy_that_has_moved_on(model, tokenizer, tmp_path):
    other = copy.deepcopy(model).eval()
    for steps, judged in ((1, True), (2, False)):
        config = OPSDConfig(
            **distill_settings(tmp_path, **{**MANY, "per_device_train_batch_size": 16, "steps_per_generation": steps})
        )
        trainer = build(OPSDTrainer, config, copy.deepcopy(model), tokenizer, rollout_func=sampler(other, tokenizer))
        assert (trainer._sampler._action != "ignore") == judged
