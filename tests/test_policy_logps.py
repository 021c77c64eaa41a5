"""Log-probabilities of GRPO's loss by our head, and the student's side of the signal for nothing."""

import copy
import logging
from typing import Any

import pytest
import torch
from helpers import build, compute_loss, distill_settings, record_scores, settings, state_of, step_logs, watch_signals
from peft import BOFTConfig, LoHaConfig, LoKrConfig, LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.scoring.forward import keep_values
from trl_selfdistill.scoring.noise import noise_of

VARIANTS = [
    {},
    {"num_iterations": 2, "max_steps": 6},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
    {"loss_type": "grpo", "beta": 0.1},
    {"gradient_checkpointing": True, "scale_rewards": "batch"},
    {"entropy_coef": 0.1},
    {"top_entropy_quantile": 0.5, "temperature": 0.7},
    {"loss_type": "cispo", "importance_sampling_level": "sequence"},
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=lambda o: "+".join(o) or "default")
@pytest.mark.parametrize("lora", [False, True])
def test_strength_zero_is_grpo_with_our_head(overrides, lora, model_dir, tokenizer, tmp_path):
    runs = []
    common = {"max_steps": 5, "optim": "sgd", "learning_rate": 0.3 if lora else 0.01, **overrides}
    for trainer_class, config in (
        (GRPOTrainer, GRPOConfig(**settings(tmp_path, **common))),
        (RLRTTrainer, RLRTConfig(**distill_settings(tmp_path, **common), rlrt_strength=0.0)),
    ):
        peft = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1) if lora else None
        trainer = build(trainer_class, config, str(model_dir), tokenizer, peft_config=peft)
        trainer.train()
        logs = [[entry[key] for key in ("loss", "grad_norm", "entropy")] for entry in step_logs(trainer)]
        runs.append((torch.tensor(logs), state_of(trainer.model)))
    assert runs[0][0][:, 0].abs().max() > 1e-4
    torch.testing.assert_close(runs[1][0], runs[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(runs[1][1], runs[0][1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [False, True])
def test_in_bfloat16_it_is_a_hundred_times_nearer_to_float64_than_trls_head(lora, model_dir, tokenizer, tmp_path):
    """Both heads see the same hidden states, and so does float64."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    model.lm_head.weight.data.mul_(8)  # logits of a trained model's size
    hidden = []
    model.model.norm.register_forward_hook(lambda module, args, out: hidden.append(out.detach()))
    found = {}
    for source in ("fused", "trl"):
        config = RLRTConfig(**distill_settings(tmp_path, policy_logps=source, bf16=True))
        peft = LoraConfig(r=4, target_modules="all-linear") if lora else None
        trainer = build(RLRTTrainer, config, copy.deepcopy(model), tokenizer, peft_config=peft)
        trainer.model.train()
        ids = torch.randint(4, 30, (6, 20), generator=torch.Generator().manual_seed(0))
        hidden.clear()
        base = trainer.model.get_base_model() if lora else trainer.model
        base.model.norm.register_forward_hook(lambda module, args, out: hidden.append(out.detach()))
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, torch.ones_like(ids), 12, compute_entropy=True
        )
        assert logps.requires_grad
        weight = base.lm_head.weight.detach().double()
        exact = (hidden[-1].double() @ weight.T).log_softmax(-1)[:, -13:-1]
        picked = exact.gather(-1, ids[:, -12:, None]).squeeze(-1)
        entropy = -(exact.exp() * exact).sum(-1)
        found[source] = (logps - picked).abs().mean().item(), (entropies - entropy).abs().mean().item()
    print(f"mean error (log-probability, entropy) in nats: {found}")
    assert found["fused"][0] * 100 <= found["trl"][0]
    assert found["fused"][1] * 100 <= found["trl"][1]


def test_values_stay_where_a_wrapper_rounds_them_and_the_gradient_takes_its_way():
    leaf = torch.tensor([0.3, -2.0], requires_grad=True)
    exact = torch.cat([leaf * torch.tensor([1.0, 3.0]), torch.tensor([-torch.inf])])
    hooked = exact.to(torch.bfloat16)
    way: list[torch.Tensor] = []
    hooked.register_hook(way.append)
    kept = keep_values(exact, hooked)
    assert torch.equal(kept, exact)
    assert kept[2] == -torch.inf
    kept[:2].sum().backward()
    assert len(way) == 1
    assert leaf.grad.tolist() == [1.0, 3.0]
    assert keep_values(exact, exact) is exact


# ---- the student's side of the signal --------------------------------------------------------------------------------

SPLITS = [
    {},
    {"num_iterations": 2, "max_steps": 4},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "steps_per_generation": 2, "max_steps": 4},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "beta": 0.1},
    {"gradient_checkpointing": True},
    {"shared_prefix": False, "num_iterations": 2, "max_steps": 4},
]


def forwards_of(model: nn.Module) -> list[tuple[int, int]]:
    """The shapes of the token tensors that go through the backbone."""
    shapes: list[tuple[int, int]] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("overrides", SPLITS, ids=lambda o: "+".join(o) or "default")
@pytest.mark.parametrize("pair", [(RLRTTrainer, RLRTConfig), (AntiSDTrainer, AntiSDConfig)], ids=["RLRT", "AntiSD"])
def test_the_students_side_is_what_a_pass_of_its_own_gives(pair, overrides, model_dir, tokenizer, tmp_path):
    trainer_class, config_class = pair
    runs = []
    for separate in (False, True):
        common = {"context": "gold", "max_steps": 3, "optim": "sgd", "learning_rate": 0.1, **overrides}
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        trainer = build(trainer_class, config_class(**distill_settings(tmp_path, **common)), model, tokenizer)
        assert not trainer._scores_student
        trainer._scores_student = separate
        seen, shapes = record_scores(trainer), forwards_of(model)
        trainer.train()
        runs.append((seen, len(shapes), state_of(model)))
    (seen, forwards, state), (own, more, other) = runs
    assert forwards < more
    assert len(seen) == len(own)
    for a, b in zip(seen, own, strict=True):
        assert torch.equal(a.mask, b.mask)
        for name in ("student_logps", "student_entropy", "teacher_logps"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(state, other, atol=1e-6, rtol=0)


def test_evaluation_has_the_same_scores(model_dir, tokenizer, tmp_path):
    losses = []
    for separate in (False, True):
        trainer = build(RLRTTrainer, RLRTConfig(**distill_settings(tmp_path)), str(model_dir), tokenizer)
        trainer._scores_student = separate
        trainer.model.eval()
        rows = [row for row in trainer.train_dataset.select([0, 1]) for _ in range(4)]
        torch.manual_seed(0)
        seen = watch_signals(trainer)
        with torch.no_grad():
            losses.append(compute_loss(trainer, rows))
        assert seen
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)


NOISES: dict[str, dict[str, Any]] = {
    "lora": {"peft_config": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)},
    "attention": {"attention_dropout": 0.5},
    "loha": {"peft_config": LoHaConfig(r=4, target_modules=["q_proj"], rank_dropout=0.5, init_weights=False)},
    "lokr": {"peft_config": LoKrConfig(r=4, target_modules=["q_proj"], module_dropout=0.5, init_weights=False)},
    "boft": {
        "peft_config": BOFTConfig(boft_block_size=4, target_modules=["q_proj"], boft_dropout=0.5, init_weights=False)
    },
    "neftune": {"neftune_noise_alpha": 5.0},
    "trl": {"policy_logps": "trl"},
}


@pytest.mark.parametrize("noise", NOISES)
def test_a_pass_of_its_own_where_the_losss_would_not_be_exact(noise, model_dir, tokenizer, tmp_path, caplog):
    """The log says so; equal prompts have no effect."""
    case = dict(NOISES[noise])
    peft, dropout = case.pop("peft_config", None), case.pop("attention_dropout", 0.0)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attention_dropout=dropout)
    config = RLRTConfig(**distill_settings(tmp_path, context="none", rlrt_strength=1.0, **case))
    with caplog.at_level(logging.INFO, "trl_selfdistill"):
        trainer = build(RLRTTrainer, config, model, tokenizer, peft_config=peft)
    assert trainer._scores_student
    assert "in a pass of its own, because" in caplog.text
    scores = record_scores(trainer)
    trainer.train()
    assert all(s.mask.any() for s in scores)
    assert max(s.log_ratio.abs().max().item() for s in scores) <= 1e-5


def test_what_makes_two_passes_differ(model, tmp_path):
    plain = GRPOConfig(**settings(tmp_path))
    assert noise_of(model, plain) is None
    assert "neftune" in (noise_of(model, GRPOConfig(**settings(tmp_path, neftune_noise_alpha=1.0))) or "")
    twin = copy.deepcopy(model)
    twin.config.attention_dropout = 0.1
    assert "attention_dropout=0.1" in (noise_of(twin, plain) or "")
    twin.config.attention_dropout, twin.config.classifier_dropout = 0.0, 0.1
    assert noise_of(twin, plain) is None
    twin.config.vision_config = {"attention_dropout": 0.3}
    assert "attention_dropout=0.3" in (noise_of(twin, plain) or "")
    del twin.config.vision_config
    twin.model.extra = nn.Dropout(0.2)
    assert "model.extra has dropout 0.2" in (noise_of(twin, plain) or "")
    twin.model.extra.p = 0.0
    assert noise_of(twin, plain) is None


# ---- shared prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["live", "base", "ema"])
@pytest.mark.parametrize("lora", [False, True])
def test_shared_prompts_change_nothing_but_the_number_of_tokens(kind, lora, model_dir, tokenizer, tmp_path):
    runs = []
    for shared in (True, False):
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        common = {"context": "gold", "teacher_model_kind": kind, "shared_prefix": shared, "max_steps": 3}
        common |= {"optim": "sgd", "learning_rate": 0.1, "teacher_update_rate": 0.5}
        peft = LoraConfig(r=4, target_modules="all-linear") if lora else None
        config = RLRTConfig(**distill_settings(tmp_path, **common))
        trainer = build(RLRTTrainer, config, model, tokenizer, peft_config=peft)
        assert trainer.shares_prefix is shared
        seen = record_scores(trainer)
        shapes = forwards_of(trainer.teacher.model if kind == "base" and not lora else model)
        trainer.train()
        runs.append((seen, sum(rows * width for rows, width in shapes), state_of(trainer.model)))
    (seen, tokens, state), (own, more, other) = runs
    assert tokens < more
    for a, b in zip(seen, own, strict=True):
        torch.testing.assert_close(a.teacher_logps, b.teacher_logps, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.teacher_entropy, b.teacher_entropy, atol=1e-5, rtol=0)
    torch.testing.assert_close(state, other, atol=1e-5, rtol=0)


def test_settings_that_do_not_exist_or_would_do_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="policy_logps='liger' must be 'fused' or 'trl'"):
        RLRTConfig(**distill_settings(tmp_path, policy_logps="liger"))
    with pytest.raises(ValueError, match="shared_prefix='yes' must be True or False"):
        RLRTConfig(**distill_settings(tmp_path, shared_prefix="yes"))
    with pytest.raises(ValueError, match="policy_logps='trl': this acts on GRPO's loss"):
        OPSDConfig(**distill_settings(tmp_path, policy_logps="trl"))
    OPSDConfig(**distill_settings(tmp_path, policy_logps="trl", opsd_policy_weight=0.5))


def test_a_float32_head_does_not_make_a_bfloat16_model_exact(model_dir, tokenizer, tmp_path, monkeypatch):
    """TRL makes the tied embeddings float32, which come first; the old policy must be rounded as the loss is."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    settings = distill_settings(tmp_path, context="gold", num_iterations=2, cast_lm_head_to_fp32=True)
    trainer = build(RLRTTrainer, RLRTConfig(**settings), model, tokenizer)
    assert model.dtype == torch.float32
    calls = []
    monkeypatch.setattr(
        trainer, "prompt_by_prompt", lambda *args: calls.append(1) or RLRTTrainer.prompt_by_prompt(trainer, *args)
    )
    trainer.train()
    assert len(calls) == 1  # the teacher's pass, and not the old policy's


@pytest.mark.parametrize("name", ["RLRT", "OPSD"])
def test_a_compiled_policy_is_refused_unless_trls_head_is_used(name, model_dir, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")  # what torch_compile=True sets
    trainer_class, config_class = (RLRTTrainer, RLRTConfig) if name == "RLRT" else (OPSDTrainer, OPSDConfig)
    with pytest.raises(ValueError, match=r"torch_compile=True .* Set torch_compile=False"):
        build(trainer_class, config_class(**distill_settings(tmp_path)), str(model_dir), tokenizer)
    if name == "RLRT":
        build(RLRTTrainer, RLRTConfig(**distill_settings(tmp_path, policy_logps="trl")), str(model_dir), tokenizer)
