"""What must be the same number, bit for bit or to a stated tolerance."""

import pytest
import torch
from datasets import Dataset
from helpers import (
    assert_same_state,
    build,
    compute_loss,
    distill_settings,
    record_scores,
    settings,
    state_of,
    step_logs,
    sums,
    watch_signals,
)
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from trl import GRPOConfig, GRPOTrainer

from trl_selfdistill import RLRTConfig, RLRTTrainer
from trl_selfdistill.context.builders import NO_PRIVILEGED_TEXT

GRPO_KEYS = ("loss", "grad_norm", "reward", "entropy", "learning_rate")
VARIANTS = [
    {},
    {"num_iterations": 2, "max_steps": 6},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
    {"loss_type": "grpo", "beta": 0.1},
    {"gradient_checkpointing": True, "scale_rewards": "batch"},
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda o: "+".join(o) or "default")
@pytest.mark.parametrize("lora", [False, True])
def test_strength_zero_is_grpo_bit_for_bit(overrides, lora, model_dir, tokenizer, tmp_path):
    runs = []
    ours = {**distill_settings(tmp_path, max_steps=5), **overrides, "rlrt_strength": 0.0, "policy_logps": "trl"}
    for trainer_class, config in (
        (GRPOTrainer, GRPOConfig(**settings(tmp_path, max_steps=5) | overrides)),
        (RLRTTrainer, RLRTConfig(**ours)),
    ):
        peft = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1) if lora else None
        trainer = build(trainer_class, config, str(model_dir), tokenizer, peft_config=peft)
        trainer.train()
        logs = [{key: entry.get(key) for key in GRPO_KEYS} for entry in step_logs(trainer)]
        runs.append((logs, state_of(trainer.model)))
    assert len(runs[0][0]) >= 5
    assert any(entry["loss"] != 0 for entry in runs[0][0])
    assert runs[0][0] == runs[1][0]
    assert_same_state(runs[0][1], runs[1][1])


def test_a_strength_above_zero_is_not_grpo(model_dir, tokenizer, tmp_path):
    ends = []
    for strength in (0.0, 0.5):
        config = RLRTConfig(**distill_settings(tmp_path, rlrt_strength=strength))
        trainer = build(RLRTTrainer, config, str(model_dir), tokenizer)
        trainer.train()
        ends.append(state_of(trainer.model))
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["live", "base"])
def test_a_teacher_prompt_equal_to_the_students_has_no_effect(kind, lora, model_dir, tokenizer, tmp_path):
    # With `base` the weights are the student's in the first step only.
    config = RLRTConfig(
        **distill_settings(
            tmp_path,
            max_steps=3 if kind == "live" else 1,
            teacher_template="{prompt}{context}",
            teacher_model_kind=kind,
            rlrt_strength=1.0,
        )
    )
    peft = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5) if lora else None
    trainer = build(
        RLRTTrainer,
        config,
        str(model_dir),
        tokenizer,
        peft_config=peft,
        context_builder=lambda rollout: NO_PRIVILEGED_TEXT,
    )
    scores = record_scores(trainer)
    trainer.train()
    assert all(s.mask.any() for s in scores)
    assert max(s.log_ratio.abs().max().item() for s in scores) <= 1e-5


def test_micro_batches_of_one_and_of_eight_agree(model_dir, tokenizer, tmp_path):
    ends, logs = [], []
    for size in (8, 1):
        config = RLRTConfig(
            **distill_settings(
                tmp_path,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
                optim="sgd",
                learning_rate=0.1,
                max_steps=4,
            )
        )
        trainer = build(RLRTTrainer, config, str(model_dir), tokenizer)
        trainer.train()
        ends.append(state_of(trainer.model))
        logs.append(step_logs(trainer))
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-6)
        assert a["self_distill/log_ratio"] == pytest.approx(b["self_distill/log_ratio"], abs=1e-6)
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], atol=1e-6, rtol=0)


def test_rows_without_a_teacher_and_masked_tokens_are_exactly_grpo(model_dir, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, rlrt_strength=1.0, max_steps=1))
    asked = iter(range(100))
    trainer = build(
        RLRTTrainer,
        config,
        str(model_dir),
        tokenizer,
        reward_funcs=lambda completions, **kwargs: [float(i % 2) for i in range(len(completions))],
        context_builder=lambda rollout: "12" if next(asked) < 4 else None,
    )
    seen = watch_signals(trainer)
    rows = [row for row in trainer.train_dataset.select([0, 1]) for _ in range(4)]
    compute_loss(trainer, rows)
    (batch,) = seen
    assert batch.scores.mask.any(dim=1).tolist() == [True] * 4 + [False] * 4
    plain = batch.plain.unsqueeze(1).expand_as(batch.advantages)
    assert torch.equal(batch.advantages[4:], plain[4:])
    assert not torch.equal(batch.advantages[:4], plain[:4])
    padding = ~batch.completion_mask.bool()
    assert torch.equal(batch.advantages[padding], plain[padding])
    assert not batch.scores.mask[padding].any()


def test_evaluation_does_not_change_which_peers_training_picks(model_dir, tokenizer, tmp_path):
    # Nor does a restart, which does not repeat the evaluation before the checkpoint.
    runs = []
    for eval_strategy in ("no", "steps"):
        config = RLRTConfig(**distill_settings(tmp_path, eval_strategy=eval_strategy, eval_steps=1, max_steps=3))
        trainer = build(RLRTTrainer, config, str(model_dir), tokenizer, eval_dataset=sums().select(range(4)))
        original, seeds = trainer._batch_seed, []

        def recorded(trainer=trainer, original=original, seeds=seeds):
            seed = original()
            if trainer.model.training:
                seeds.append(seed)
            return seed

        trainer._batch_seed = recorded
        trainer.train()
        runs.append(seeds)
    assert len(set(runs[0])) == 3
    assert runs[0] == runs[1]


def test_the_base_teacher_of_a_preloaded_adapter_leaves_grpos_random_numbers_alone(model_dir, tokenizer, tmp_path):
    runs = []
    for trainer_class, config in (
        (GRPOTrainer, GRPOConfig(**settings(tmp_path))),
        (
            RLRTTrainer,
            RLRTConfig(**distill_settings(tmp_path, teacher_model_kind="base", policy_logps="trl"), rlrt_strength=0.0),
        ),
    ):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
        trainer = build(trainer_class, config, model, tokenizer)
        trainer.train()
        runs.append([{key: entry.get(key) for key in GRPO_KEYS} for entry in step_logs(trainer)])
    assert runs[0] == runs[1]


def test_absolute_positions_do_not_see_the_padding(model_dir, tokenizer, tmp_path):
    # GPT-2 adds a learned vector for each position. Prompts of other lengths in the batch must not shift a row.
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=2, **ends)
    )
    gpt2.transformer.wpe.weight.data *= 50
    config = RLRTConfig(**distill_settings(tmp_path, teacher_template="{prompt}{context}"))
    long, short = [{"role": "user", "content": "1" * 50}], [{"role": "user", "content": "1"}]
    asked = iter(range(100))  # one long teacher prompt pads the others
    trainer = build(
        RLRTTrainer,
        config,
        gpt2,
        tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [short] * 8}),
        context_builder=lambda rollout: (
            NO_PRIVILEGED_TEXT if next(asked) % 8 else "2" * 90
        ),  # one long teacher prompt pads the others
    )
    scores = record_scores(trainer)
    compute_loss(trainer, [{"prompt": short}] * 4 + [{"prompt": long}] * 4)
    assert scores[0].log_ratio[0].abs().max() > 1e-3
    assert scores[0].log_ratio[1:].abs().max() <= 1e-5
