"""RLRT works wherever GRPO works: one short training run for each way of using TRL's trainer."""

import asyncio
import copy
import functools
import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from helpers import (
    HINT_TEMPLATE,
    build,
    compute_loss,
    distill_settings,
    lenient_reward,
    settings,
    state_of,
    step_logs,
    watch_signals,
)
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from PIL import Image
from tiny_policy import build_model, build_tokenizer, sums, supervised_steps
from tiny_vlm import tiny_llava, tiny_qwen2_vl
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from trl import GRPOConfig, GRPOTrainer

from trl_selfdistill import RLRTConfig, RLRTTrainer, SelfDistillConfig
from trl_selfdistill.algorithms.rlrt import rlrt_advantages
from trl_selfdistill.context.builders import NO_PRIVILEGED_TEXT
from trl_selfdistill.maths import log_ratio
from trl_selfdistill.scoring.tokens import written
from trl_selfdistill.trainer.scorer import completion_logps

# An untrained model would hardly ever end its answer.
OFTEN_DONE = {"sequence_bias": [[[build_tokenizer().eos_token_id], 5.0]]}
LORA = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.2}


def check(batch: Any, *, strength: float = 0.5, clip: float = 1.0) -> None:
    """The scored tokens are the model's own in rows with a teacher; they carry RLRT's advantage, all others GRPO's."""
    written = batch.completion_mask.bool() & getattr(batch, "tool_mask", torch.tensor(1)).bool()
    scores, taught = batch.scores, batch.teacher["has_context"].unsqueeze(1)
    assert torch.equal(scores.mask, written & taught)
    assert batch.advantages.shape == batch.completion_ids.shape
    u = log_ratio(scores.student_logps, scores.teacher_logps)
    expected = rlrt_advantages(batch.plain, u, scores.correct, strength=strength, clip=clip)
    assert torch.equal(batch.advantages[scores.mask], expected[scores.mask])
    plain = batch.plain.unsqueeze(1).expand_as(batch.advantages)
    rest = ~(scores.mask & scores.correct.unsqueeze(1))
    assert torch.equal(batch.advantages[rest], plain[rest])


def is_shaped(batch: Any) -> bool:
    return not torch.equal(batch.advantages, batch.plain.unsqueeze(1).expand_as(batch.advantages))


@torch.no_grad()
def direct_logps(model: Any, prompt_ids, prompt_mask, batch: Any, *, temperature: float = 1.0, **media) -> torch.Tensor:
    """Log-probabilities of the completions after `prompt_ids` the plain way: all logits, row by row, without padding.

    Images belong to no row: with them, all rows go through one padded forward.
    """
    ids = torch.cat([prompt_ids, batch.completion_ids], dim=1)
    mask = torch.cat([prompt_mask, batch.completion_mask], dim=1)
    width = batch.completion_ids.size(1)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    if media:
        logits = model(input_ids=ids, attention_mask=mask, **media).logits[:, -width - 1 : -1]
    else:
        # From the end: prompt tuning adds positions in front. What follows the end token is masked, and scored nowhere.
        keep = [torch.cat([prompt.bool(), torch.ones(width, dtype=torch.bool)]) for prompt in prompt_mask]
        logits = torch.cat(
            [model(input_ids=row[k][None]).logits[:, -width - 1 : -1] for row, k in zip(ids, keep, strict=True)]
        )
    for module, mode in modes.items():
        module.training = mode
    logps = (logits.float() / temperature).log_softmax(-1)
    return logps.gather(-1, batch.completion_ids.unsqueeze(-1)).squeeze(-1)


def assert_scored_by(batch: Any, *, student: Any = None, teacher: Any = None, atol: float = 1e-4, **kwargs) -> None:
    mask = batch.scores.mask
    assert mask.any()
    if student is not None:
        expected = direct_logps(student, batch.prompt_ids, batch.prompt_mask, batch, **kwargs)
        torch.testing.assert_close(batch.scores.student_logps[mask], expected[mask], atol=atol, rtol=0)
    if teacher is not None:
        sees = batch.teacher["teacher_prompt_ids"], batch.teacher["teacher_prompt_mask"]
        expected = direct_logps(teacher, *sees, batch, **kwargs)
        torch.testing.assert_close(batch.scores.teacher_logps[mask], expected[mask], atol=atol, rtol=0)


def verify_scores(trainer: RLRTTrainer, *, start: Any = None, atol: float = 1e-4, media: Any = None) -> None:
    """Compare both sides of every batch with a plain forward, at the time they are scored.

    `start` is a model with the teacher's weights, the policy itself by default; `media(batch, ids)` gives the inputs
    for images.
    """
    apply, shape, fresh = trainer.apply_teacher, trainer.shape, []

    def applying(batch, lesson):
        (view,) = lesson.views.values()
        out = apply(batch, lesson)
        mask = written(batch) & view.prompts["has_context"].unsqueeze(1)
        if mask.any():
            sees = view.prompts["teacher_prompt_ids"], view.prompts["teacher_prompt_mask"]
            inputs = media(batch, sees[0]) if media else {}
            expected = direct_logps(start or trainer.model, *sees, SimpleNamespace(**batch), **inputs)
            torch.testing.assert_close(out["view/teacher/logps"][mask], expected[mask], atol=atol, rtol=0)
        fresh.append(True)
        return out

    def shaping(inputs):
        scores = trainer._scores(inputs)
        if fresh and scores.mask.any():  # later the policy has moved
            fresh.clear()
            own = inputs["prompt_ids"], inputs["prompt_mask"]
            more = media(inputs, own[0]) if media else {}
            expected = direct_logps(trainer.model, *own, SimpleNamespace(**inputs), **more)
            torch.testing.assert_close(scores.student_logps[scores.mask], expected[scores.mask], atol=atol, rtol=0)
        return shape(inputs)

    trainer.apply_teacher, trainer.shape = applying, shaping


def train(trainer: RLRTTrainer) -> list[Any]:
    """Train; check every batch, that the policy moved, and that the teacher had a say. The batches."""
    before = state_of(trainer.model)
    seen = watch_signals(trainer)
    trainer.train()
    after = state_of(trainer.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for batch in seen:
        check(batch, strength=trainer.args.rlrt_strength, clip=trainer.args.rlrt_clip)
    assert any(is_shaped(batch) for batch in seen)
    logs = step_logs(trainer)
    assert all(math.isfinite(entry["loss"]) for entry in logs)
    for name in ("self_distill/log_ratio", "self_distill/teacher_entropy", "self_distill/correct", "rlrt/weight"):
        assert any(name in entry and math.isfinite(entry[name]) for entry in logs), name
    return seen


# ---- what GRPOConfig offers ------------------------------------------------------------------------------------------

GRPO_SETTINGS = [
    *({"loss_type": name} for name in ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")),
    {"loss_type": "cispo", "importance_sampling_level": "sequence", "num_iterations": 2},
    {"loss_type": "vespo", "importance_sampling_level": "sequence", "beta": 0.1},
    {"off_policy_mask_threshold": 1e-3, "num_iterations": 2},
    {"loss_type": "vespo", "off_policy_mask_threshold": 1e-3, "num_iterations": 2},
    {"top_entropy_quantile": 0.5},
    {"entropy_coef": 0.01},
    {"beta": 0.1},
    {"beta": 0.1, "use_bias_correction_kl": True, "num_iterations": 2},
    {"num_iterations": 3, "max_steps": 6},
    {"per_device_train_batch_size": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_iterations": 2},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    {"mask_truncated_completions": True, "max_completion_length": 2},
    {"scale_rewards": "batch"},
    {"scale_rewards": "none", "delta": 1.5},
    {"multi_objective_aggregation": "normalize_then_sum"},
    {"pad_to_multiple_of": 16},
    {"disable_dropout": True},
    {"bf16": True},
    {"temperature": 0.7, "top_k": 20},
    {"remove_unused_columns": True},
    {"shuffle_dataset": False},
    {"log_completions": True},
    {"rlrt_strength": 1.0, "rlrt_clip": 0.2},
    {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": {"num_blocks": 64, "max_batch_tokens": 64},
    },
]


@pytest.mark.parametrize("overrides", GRPO_SETTINGS, ids=lambda o: "+".join(f"{k}={v}" for k, v in o.items())[:60])
def test_settings_of_grpo(overrides, model_dir, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, context="gold") | overrides)
    trainer = build(RLRTTrainer, config, str(model_dir), tokenizer)
    seen = train(trainer)
    per_generation = config.steps_per_generation * config.num_iterations
    batches = math.ceil(config.max_steps * config.gradient_accumulation_steps / per_generation)
    assert len({id(batch.lesson) for batch in seen}) == batches


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("size", [8, 3])
def test_scores_are_those_of_a_plain_forward(temperature, size, model, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, temperature=temperature, context="gold"))
    trainer = build(RLRTTrainer, config, model, tokenizer)
    trainer.args.per_device_train_batch_size = size  # forwards of 3, 3 and 2 rows
    seen = watch_signals(trainer)
    compute_loss(trainer, [row for row in sums().select([7, 93]) for _ in range(4)])
    assert_scored_by(seen[0], student=trainer.model, teacher=trainer.model, temperature=temperature)
    assert seen[0].scores.log_ratio.abs().max() > 0.01


def test_truncated_completions_are_masked_out_of_everything(model, tokenizer, tmp_path):
    config = RLRTConfig(
        **distill_settings(tmp_path, context="gold", mask_truncated_completions=True, max_completion_length=1)
    )
    trainer = build(RLRTTrainer, config, model, tokenizer)
    seen = watch_signals(trainer)
    rows = [row for row in sums().select([7, 93]) for _ in range(4)]
    compute_loss(trainer, rows)
    check(seen[0])
    cut = seen[0].completion_ids[:, -1] != tokenizer.eos_token_id
    assert cut.any()
    assert not seen[0].scores.mask[cut].any()
    assert not seen[0].scores.correct[cut].any()


@pytest.mark.parametrize(
    ("dtype", "fp32_head"),
    [(torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False), (torch.float64, False)],
)
def test_precisions(dtype, fp32_head, model_dir, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
    config = RLRTConfig(
        **distill_settings(tmp_path, context="gold", cast_lm_head_to_fp32=fp32_head, learning_rate=1e-2)
    )
    seen = train(build(RLRTTrainer, config, model, tokenizer))
    assert all(batch.scores.student_logps.dtype == torch.float32 for batch in seen)


FAMILIES = {
    "softcap": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 5.0, "head_dim": 16}),
    "scaled": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.3}),
    "divided": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 4.0}),
    "absolute positions": (GPT2LMHeadModel, GPT2Config, {}),
    "experts": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "router_aux_loss_coef": 0.01,
            "output_router_logits": True,
            "head_dim": 16,
        },
    ),
    "state space": (MambaForCausalLM, MambaConfig, {"state_size": 4}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_model_families(family, tokenizer, tmp_path):
    model_class, config_class, special = FAMILIES[family]
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
    }
    if family == "absolute positions":
        shape.pop("num_key_value_heads")
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = model_class(config_class(**shape, **special, **ends))
    model.generation_config.update(**ends)
    config = RLRTConfig(**distill_settings(tmp_path, context="gold", generation_kwargs=OFTEN_DONE))
    trainer = build(RLRTTrainer, config, model, tokenizer)
    verify_scores(trainer)
    train(trainer)


def test_every_micro_batch_keeps_rows_and_their_token_advantages_together(model, tokenizer, tmp_path):
    sizes = {"per_device_train_batch_size": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
    config = RLRTConfig(**distill_settings(tmp_path, context="gold", num_iterations=2, max_steps=4) | sizes)
    trainer = build(RLRTTrainer, config, model, tokenizer)
    used, loss = [], trainer.policy_loss
    trainer.policy_loss = lambda model, inputs: used.append(inputs) or loss(model, inputs)
    parts = train(trainer)  # the batch serves two steps, and its rows are logged as they come
    assert len({id(part.lesson) for part in parts}) == 1
    assert len(used) == 8
    rows = [(part.completion_ids.tolist(), part.advantages.tolist()) for part in parts]
    expected = sorted(row for ids, advantages in rows for row in zip(ids, advantages, strict=True))
    for iteration in (used[:4], used[4:]):
        rows = [r for i in iteration for r in zip(i["completion_ids"].tolist(), i["advantages"].tolist(), strict=True)]
        assert sorted(rows) == expected


# ---- whose weights ---------------------------------------------------------------------------------------------------


def preloaded_adapter(model: Any, **config: Any) -> PeftModel:
    """A policy that comes with an adapter of its own, which is not zero."""
    torch.manual_seed(1)
    policy = get_peft_model(model, LoraConfig(**{**LORA, **config}, init_lora_weights=False))
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(0.1)
    return policy


def pristine(model_dir, policy: Any) -> Any:
    """An independent model with the weights that `policy` has now."""
    plain = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if not isinstance(policy, PeftModel):
        return plain
    start = get_peft_model(plain, policy.peft_config["default"])
    start.load_state_dict({k: v.clone() for k, v in policy.state_dict().items()}, strict=True)
    return start


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("policy", ["full", "fresh", "preloaded", "embedding"])
def test_the_base_teacher_stays_what_the_policy_was_at_the_start(policy, beta, model_dir, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    peft = None
    if policy == "preloaded":
        model = preloaded_adapter(model)
    if policy == "embedding":
        model = preloaded_adapter(model, target_modules=["embed_tokens", "up_proj"])
    if policy == "fresh":
        peft = LoraConfig(**LORA)
    start = pristine(model_dir, model)
    config = RLRTConfig(
        **distill_settings(
            tmp_path,
            context="gold",
            teacher_model_kind="base",
            beta=beta,
            learning_rate=1e-2,
            max_steps=3,
            gradient_checkpointing=True,
        )
    )
    trainer = build(RLRTTrainer, config, model, tokenizer, peft_config=peft)
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    seen = train(trainer)
    for batch in seen:
        assert_scored_by(batch, teacher=start)
    drift = seen[-1].scores.student_logps - direct_logps(start, seen[-1].prompt_ids, seen[-1].prompt_mask, seen[-1])
    assert drift[seen[-1].scores.mask].abs().max() > 1e-2
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == trainable
    assert not any(".ref." in name for name in trainable)
    if policy != "full":
        assert trainer.model.active_adapter == "default"


def test_the_live_teacher_of_a_preloaded_adapter_is_the_policy(model, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, context="gold", learning_rate=1e-2))
    trainer = build(RLRTTrainer, config, preloaded_adapter(model), tokenizer)
    verify_scores(trainer)
    train(trainer)


@pytest.mark.parametrize("kind", ["live", "base"])
def test_identical_prompts_under_dropout_give_exactly_zero(kind, model, tokenizer, tmp_path):
    config = RLRTConfig(
        **distill_settings(tmp_path, teacher_template="{context}{prompt}", teacher_model_kind=kind, max_steps=1)
    )
    policy = preloaded_adapter(model, lora_dropout=0.5)
    trainer = build(RLRTTrainer, config, policy, tokenizer, context_builder=lambda rollout: NO_PRIVILEGED_TEXT)
    seen = watch_signals(trainer)
    trainer.train()
    assert trainer.model.training
    assert seen[0].scores.mask.any(dim=1).all()
    assert not seen[0].scores.log_ratio.any()
    assert torch.equal(seen[0].advantages, seen[0].plain.unsqueeze(1).expand_as(seen[0].advantages))


@pytest.mark.parametrize("kind", ["live", "base"])
def test_modes_and_adapter_come_back_when_the_forward_raises(kind, model, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, context="gold", teacher_model_kind=kind))
    trainer = build(RLRTTrainer, config, preloaded_adapter(model), tokenizer)
    trainer.model.base_model.model.model.layers[0].eval()  # frozen by hand; must not be switched on
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    gradients = {name: p.requires_grad for name, p in trainer.model.named_parameters()}
    batch = trainer._generate_and_score_completions([sums()[7]] * 8)

    def broken(*args):
        assert not any(module.training for module in trainer.model.modules())
        raise RuntimeError("out of memory")

    norm = trainer.model.base_model.model.model.norm
    hook = norm.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        completion_logps(
            trainer, trainer.teacher, batch, batch["prompt_ids"], batch["prompt_mask"], torch.arange(8) == 0
        )
    hook.remove()
    assert {name: module.training for name, module in trainer.model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in trainer.model.named_parameters()} == gradients
    assert trainer.model.active_adapter == "default"
    trainer._generate_and_score_completions([sums()[7]] * 8)


def untied(model: Any, tokenizer: Any, **shape: int) -> Any:
    """The same weights in a model whose head is not its embedding."""
    copy = build_model(tokenizer, tie_word_embeddings=False, **shape)
    copy.load_state_dict(model.state_dict())
    return copy


PEFT_CONFIGS = {
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
    "head-saved": LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "embedding": LoraConfig(**{**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
    "pissa": LoraConfig(**LORA, init_lora_weights="pissa"),
    "ia3": IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}
OTHERS_ARE_TRAINED = ("head-saved",)


@pytest.mark.parametrize("kind", ["live", "base"])
@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_peft(name, kind, model, tokenizer, tmp_path):
    config = RLRTConfig(
        **distill_settings(tmp_path, context="gold", learning_rate=1e-2, teacher_model_kind=kind, max_steps=3)
    )
    start = untied(model, tokenizer)
    policy = untied(model, tokenizer)
    if kind == "base" and name in OTHERS_ARE_TRAINED:
        with pytest.raises(ValueError, match=r"modules_to_save.*'live'"):
            build(RLRTTrainer, config, policy, tokenizer, peft_config=PEFT_CONFIGS[name])
        return
    trainer = build(RLRTTrainer, config, policy, tokenizer, peft_config=copy.deepcopy(PEFT_CONFIGS[name]))
    verify_scores(trainer, start=None if kind == "live" else start)
    train(trainer)


@pytest.mark.parametrize("trained", [LoraConfig(target_modules=["q_proj"], trainable_token_indices={"lm_head": [1]})])
def test_an_adapted_head_is_refused_at_construction(trained, model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="LM head is adapted by PEFT"):
        build(
            RLRTTrainer,
            RLRTConfig(**distill_settings(tmp_path)),
            untied(model, tokenizer),
            tokenizer,
            peft_config=trained,
        )


@pytest.fixture(scope="module")
def quantizable_dir(tokenizer, tmp_path_factory):
    """The young policy in the widths that the CPU kernel of bitsandbytes can do: multiples of 64."""
    folder = tmp_path_factory.mktemp("quantizable")
    model = build_model(tokenizer, intermediate_size=256)
    supervised_steps(model, tokenizer, steps=40)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["live", "base", "ema"])
def test_qlora(kind, quantizable_dir, tokenizer, tmp_path):
    config = RLRTConfig(
        **distill_settings(
            tmp_path, context="gold", teacher_model_kind=kind, gradient_checkpointing=True, learning_rate=1e-2
        )
    )
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=True,
    )
    policy = str(quantizable_dir)
    lora = LoraConfig(**LORA)
    trainer = build(RLRTTrainer, config, policy, tokenizer, quantization_config=nf4, peft_config=lora)
    assert trainer.model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    seen = train(trainer)
    if kind == "base":
        with trainer.model.disable_adapter():
            for batch in seen:
                # The kernel rounds its scales to bfloat16 on first use.
                assert_scored_by(batch, teacher=trainer.model, atol=1e-2)


# ---- data ------------------------------------------------------------------------------------------------------------


def stream(rows: Any) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


def renamed(dataset: Dataset) -> Dataset:
    return dataset.rename_column("solution", "privileged_context")


@pytest.mark.parametrize(
    ("form", "column", "drop"),
    [
        ("stored", "solution", True),
        ("stored", "privileged_context", True),
        ("stored", "reference", False),
        ("streamed", "solution", True),
        ("streamed", "reference", False),
        ("streamed with features", "privileged_context", True),
        ("streamed with features", "solution", False),
    ],
)
def test_the_gold_column_reaches_the_teacher(form, column, drop, model, tokenizer, tmp_path):
    data = sums().rename_column("solution", column) if column != "solution" else sums()
    data = {"stored": data, "streamed": stream(data), "streamed with features": data.to_iterable_dataset()}[form]
    config = RLRTConfig(
        **distill_settings(
            tmp_path,
            context="gold",
            remove_unused_columns=drop,
            privileged_context_column="privileged_context" if column == "solution" else column,
            num_iterations=2,
        )
    )
    seen = train(build(RLRTTrainer, config, model, tokenizer, train_dataset=data))
    for batch in seen:
        for row, ids in zip(batch.prompts, batch.teacher["teacher_prompt_ids"], strict=True):
            question = row[0]["content"]
            answer = sum(map(int, question.rstrip("=").split("+")))
            assert f"[{answer}]{question}" in tokenizer.decode(ids)


def test_a_stream_without_its_gold_column_is_refused(model, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, context="gold"))
    with pytest.raises(ValueError, match=r"privileged_context_column"):
        build(RLRTTrainer, config, model, tokenizer, train_dataset=stream(sums().remove_columns("solution")))


@pytest.mark.parametrize(
    ("form", "generations"),
    [("stored", None), ("stored", 1), ("streamed", 2), ("streamed", None), ("several", 2)],
)
def test_evaluation(form, generations, model, tokenizer, tmp_path):
    few = sums().select(range(4))
    data = {"stored": few, "streamed": stream(few), "several": {"a": few, "b": few.select(range(2))}}[form]
    config = RLRTConfig(
        **distill_settings(
            tmp_path,
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=4,
            num_generations_eval=generations,
        )
    )
    trainer = build(RLRTTrainer, config, model, tokenizer, eval_dataset=data)
    seen = train(trainer)
    evaluated = [batch for batch in seen if not batch.scores.training]
    size = generations or 4
    for batch in evaluated:
        rollouts, prompts = batch.rollouts, batch.prompts
        for start in range(0, len(rollouts), size):
            group = rollouts[start : start + size]
            assert all(prompt == prompts[start] for prompt in prompts[start : start + size])
            assert all(len(rollout.peers) <= size - 1 for rollout in group)
    assert len(evaluated) >= 2
    names = ("eval_a", "eval_b") if form == "several" else ("eval",)
    for name in names:
        (first, *_) = [entry for entry in trainer.state.log_history if f"{name}_loss" in entry]
        assert math.isfinite(first[f"{name}_loss"])
        # TRL itself writes `eval_` before its metrics and does not name the set.
        assert "eval_self_distill/correct" in first


def test_token_signals_of_evaluation_do_not_overwrite_those_of_training(model, tokenizer, tmp_path):
    config = RLRTConfig(
        **distill_settings(
            tmp_path, log_token_signals=True, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4
        )
    )
    build(RLRTTrainer, config, model, tokenizer, eval_dataset=sums().select(range(2))).train()
    written = {file.name: len(Dataset.from_parquet(str(file))) for file in (tmp_path / "token_signals").iterdir()}
    steps = ("step_000001.parquet", "step_000002.parquet")
    assert written == {**dict.fromkeys(steps, 8), **{f"eval_{name}": 4 for name in steps}}


def test_token_signals_of_several_evaluation_sets_have_a_file_each(model, tokenizer, tmp_path):
    config = RLRTConfig(
        **distill_settings(tmp_path, log_token_signals=True, eval_strategy="steps", eval_steps=2, max_steps=2)
    )
    sets = {name: sums().select(range(8)) for name in ("easy", "hard/er")}
    build(RLRTTrainer, config, model, tokenizer, eval_dataset=sets).train()
    written = {file.name for file in (tmp_path / "token_signals").glob("eval_*")}
    assert written == {"eval_easy_step_000002.parquet", "eval_hard-er_step_000002.parquet"}


def test_a_set_that_only_evaluate_sees_may_name_its_own_gold_column(model, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, context="gold"))
    trainer = build(RLRTTrainer, config, model, tokenizer, train_dataset=renamed(sums()))
    assert trainer.evaluate(sums().select(range(8)))["eval_self_distill/has_teacher"] == 1.0
    with pytest.raises(ValueError, match="privileged_context_column"):
        trainer.evaluate(sums().select(range(8)).remove_columns("solution"))


def test_train_and_eval_sets_may_name_the_gold_column_differently(model, tokenizer, tmp_path):
    both = renamed(sums()).add_column("solution", ["wrong"] * 100)
    config = RLRTConfig(
        **distill_settings(
            tmp_path, context="gold", eval_strategy="steps", eval_steps=1, max_steps=1, remove_unused_columns=True
        )
    )
    trainer = build(
        RLRTTrainer,
        config,
        model,
        tokenizer,
        train_dataset=both,
        eval_dataset=sums().select(range(2)),
    )
    seen = watch_signals(trainer)
    trainer.train()
    for batch in seen:
        for rollout, prompt in zip(batch.rollouts, batch.prompts, strict=True):
            assert rollout.gold == str(sum(map(int, prompt[0]["content"].rstrip("=").split("+"))))
    assert {batch.scores.training for batch in seen} == {True, False}


# ---- prompts ---------------------------------------------------------------------------------------------------------

EARLIER = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
PROMPTS = {
    "plain": lambda q: q,
    "conversation": lambda q: [{"role": "user", "content": q}],
    "system": lambda q: [{"role": "system", "content": "Add."}, {"role": "user", "content": q}],
    "turns": lambda q: [*EARLIER, {"role": "user", "content": q}],
    "blocks": lambda q: [{"role": "user", "content": [{"type": "text", "text": q}]}],
    "assistant last": lambda q: [{"role": "user", "content": q}, {"role": "assistant", "content": "It is "}],
    "tool last": lambda q: [*EARLIER, {"role": "tool", "content": q}],
}
NEEDS_SYSTEM = ("assistant last", "tool last")
BLOCKS_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for b in m['content'] %}{{ b['text'] }}{% endfor %}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize("placement", ["user", "system"])
@pytest.mark.parametrize("form", PROMPTS)
def test_prompts(form, placement, model, tokenizer, tmp_path):
    rows = [{**row, "prompt": PROMPTS[form](row["prompt"][0]["content"])} for row in sums()]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken("<|tool|>", special=True)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.chat_template = BLOCKS_TEMPLATE
    template = HINT_TEMPLATE if placement == "user" else "[{context}]"
    config = RLRTConfig(
        **distill_settings(tmp_path, context="gold", context_placement=placement, teacher_template=template)
    )
    make = lambda: build(RLRTTrainer, config, model, tokenizer, train_dataset=Dataset.from_list(rows))  # noqa: E731
    if placement == "user" and form in NEEDS_SYSTEM:
        with pytest.raises(ValueError, match="context_placement='system'"):
            make()
        return
    trainer = make()
    trainer.reward_funcs[0] = lambda completions, **kwargs: [float(i % 2) for i in range(len(completions))]
    seen = watch_signals(trainer)
    compute_loss(trainer, [row for row in rows[7:9] for _ in range(4)])
    batch = vars(seen[0])
    check(seen[0])
    for i, rollout in enumerate(seen[0].rollouts):
        sees = batch_ids(seen[0].teacher["teacher_prompt_ids"], seen[0].teacher["teacher_prompt_mask"])[i]
        own = batch_ids(batch["prompt_ids"], batch["prompt_mask"])[i]
        text = tokenizer.decode(sees)
        assert f"[{rollout.gold}]" in text
        if placement == "system":
            assert sees[len(sees) - len(own) :] == own
        else:
            assert text.replace(f"[{rollout.gold}]", "") == tokenizer.decode(own)
    assert_scored_by(seen[0], student=trainer.model, teacher=trainer.model)


def batch_ids(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


# ---- rewards and contexts --------------------------------------------------------------------------------------------


async def slow_length(completions, **kwargs):
    await asyncio.sleep(0.001)
    return [float(len(c[0]["content"])) for c in completions]


def nothing(completions, **kwargs):
    return [None] * len(completions)


def sometimes(completions, **kwargs):
    return [None if i % 4 == 0 else 1.0 for i in range(len(completions))]


def reward_model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = build_model(tokenizer).config
    config.num_labels = 1
    return Qwen3ForSequenceClassification(config)


REWARDS = {
    "first of two": ([lenient_reward, slow_length], None, 1.0),
    "named": ([slow_length, lenient_reward], "lenient_reward", 1.0),
    "async": ([lenient_reward, slow_length], "slow_length", 2.0),
    "only async": ([slow_length], None, 2.0),
    "one always None": ([nothing, lenient_reward], "lenient_reward", 1.0),
    "some None": ([sometimes, lenient_reward], None, 1.0),
    "model": (["model", lenient_reward], None, -100.0),
}


@pytest.mark.parametrize("case", REWARDS)
def test_rewards(case, model, tokenizer, tmp_path):
    funcs, name, threshold = REWARDS[case]
    funcs = [reward_model(tokenizer) if func == "model" else func for func in funcs]
    config = RLRTConfig(
        **distill_settings(tmp_path, context="gold", correctness_reward=name, correctness_threshold=threshold)
    )
    judges = [tokenizer if isinstance(func, torch.nn.Module) else None for func in funcs]
    chosen = name or len(funcs) == 1
    with nullcontext() if chosen else pytest.warns(UserWarning, match="Set correctness_reward to choose"):
        trainer = build(RLRTTrainer, config, model, tokenizer, reward_funcs=funcs, reward_processing_classes=judges)
    calculate, rewards = GRPOTrainer._calculate_rewards, []

    def remembering(*args):
        rewards.append(calculate(trainer, *args))
        return rewards[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, *args: remembering(*args))
        seen = train(trainer)
    column = trainer.reward_func_names.index(name) if name else 0
    for batch, values in zip(seen, rewards, strict=True):
        ended = (batch.completion_ids == tokenizer.eos_token_id).any(dim=1)
        enough = values[:, column] >= threshold  # False for NaN
        assert torch.equal(batch.scores.correct, enough & ended)
    if case == "some None":
        assert not seen[0].scores.correct[::4].any()


def test_a_correctness_reward_that_is_not_there_is_refused(model, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, correctness_reward="accuracy"))
    with pytest.raises(ValueError, match=r"correctness_reward='accuracy'.*lenient_reward"):
        build(RLRTTrainer, config, model, tokenizer)


def test_peers_are_correct_rollouts_of_the_same_prompt_and_never_the_rollout_itself(model, tokenizer, tmp_path):
    seen = train(build(RLRTTrainer, RLRTConfig(**distill_settings(tmp_path, max_steps=4)), model, tokenizer))
    contexts = 0
    for batch in seen:
        rollouts = batch.rollouts
        for i, rollout in enumerate(rollouts):
            group = range(i - i % 4, i - i % 4 + 4)
            correct = [rollouts[j].completion for j in group if j != i and rollouts[j].correct]
            assert sorted(rollout.peers) == sorted(text for text in correct if text)
            assert batch.teacher["has_context"][i] == bool(rollout.peers)
            if rollout.peers:
                contexts += 1
                prompt = f"[{rollout.peers[0]}]{batch.prompts[i][0]['content']}"
                assert prompt in tokenizer.decode(batch.teacher["teacher_prompt_ids"][i])
    assert 0 < contexts < 8 * len(seen)


def shout(rollout):
    """Found by its dotted path."""
    return None if rollout.row["solution"] == "3" else f"{rollout.row['solution']}!"


@pytest.mark.parametrize("given", ["dotted", "builder"])
def test_own_contexts(given, model, tokenizer, tmp_path):
    own = {"context": f"{__name__}.shout"} if given == "dotted" else {}
    config = RLRTConfig(**distill_settings(tmp_path, **own))
    builder = {"context_builder": shout} if given == "builder" else {}
    data = Dataset.from_list([row for row in sums() if row["solution"] in "34"])
    trainer = build(RLRTTrainer, config, model, tokenizer, train_dataset=data, **builder)
    for batch in train(trainer):
        for rollout, ids, taught in zip(
            batch.rollouts, batch.teacher["teacher_prompt_ids"], batch.teacher["has_context"], strict=True
        ):
            assert ("[4!]" in tokenizer.decode(ids)) == (rollout.gold == "4") == taught.item()
    assert any(entry.get("self_distill/context_custom", 0) > 0 for entry in step_logs(trainer))


# ---- configurations --------------------------------------------------------------------------------------------------


def test_a_plain_grpo_config_keeps_its_values_and_gets_the_defaults_of_rlrt(model, tokenizer, tmp_path):
    defaults = RLRTConfig(**settings(tmp_path)).to_dict()
    args = GRPOConfig(**settings(tmp_path, beta=0.0, loss_type="grpo", temperature=0.9, num_iterations=2))
    trainer = build(RLRTTrainer, args, model, tokenizer)
    assert isinstance(trainer.args, RLRTConfig)
    assert trainer.args.to_dict() == {**defaults, **args.to_dict()}
    assert (trainer.args.context, trainer.args.rlrt_strength, trainer.temperature) == ("peer", 0.5, 0.9)
    assert type(args) is GRPOConfig
    train(trainer)


@pytest.mark.parametrize("adapter", [False, True])
def test_no_args_at_all(adapter, model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    on_cpu = functools.partialmethod(RLRTConfig.__init__, use_cpu=True, bf16=False)  # TRL's defaults want a GPU
    monkeypatch.setattr(RLRTConfig, "__init__", on_cpu)
    model.config._name_or_path = "some/tiny-model"
    policy = preloaded_adapter(model) if adapter else model
    trainer = build(RLRTTrainer, None, policy, tokenizer)
    assert trainer.args.output_dir == "tiny-model-RLRT"
    assert type(trainer.args) is RLRTConfig


def test_the_config_of_another_algorithm_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="RLRTConfig, not SelfDistillConfig"):
        build(RLRTTrainer, SelfDistillConfig(**settings(tmp_path)), model, tokenizer)


# ---- tools, environments, custom rollouts ----------------------------------------------------------------------------

TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|system|>' + (tools | map('tojson') | join(' ')) + '<|end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% for call in m.get('tool_calls') or [] %}{{ '<call>' + (call['function'] | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TOOL_RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close_pattern": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>", "content": "text"},
    },
}


def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return f"wait, that is {a + b}"


async def add_later(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    await asyncio.sleep(0.001)
    return add(a, b)


def call(name: str) -> str:
    return f'<call>{{"name": "{name}", "arguments": {{"a": 1, "b": 2}}}}</call><|end|>'


@pytest.fixture
def tool_user(model, tokenizer):
    """(model, tokenizer) with a chat template that knows tools."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken("<|tool|>", special=True)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.chat_template, tokenizer.response_template = TOOL_TEMPLATE, TOOL_RESPONSE
    return model, tokenizer


def scripted(trainer: RLRTTrainer, first: list[str], second: str) -> None:
    """Let the model write `first`, in turn, to prompts without a tool's result, and `second` after one."""

    def generate(prompt_ids, images, fields, num_generations, has_tool_images=False):
        tool = trainer._tokenizer.convert_tokens_to_ids("<|tool|>")
        texts = [second if tool in ids else first[i % len(first)] for i, ids in enumerate(prompt_ids)]
        return [trainer._tokenizer(text)["input_ids"] if text else [] for text in texts], None

    trainer._generate_single_turn = generate


def right_answers(completions, **kwargs):
    return [float(completion[-1].get("content") == "3") for completion in completions]


@pytest.mark.parametrize(("tool", "placement"), [(add, "user"), (add_later, "system")])
def test_tools(tool, placement, tool_user, tmp_path):
    model, tokenizer = tool_user
    template = HINT_TEMPLATE if placement == "user" else "[{context}]"
    own = {"context_placement": placement, "teacher_template": template, "max_completion_length": 128}
    config = RLRTConfig(**distill_settings(tmp_path, **own))
    trainer = build(RLRTTrainer, config, model, tokenizer, tools=[tool], reward_funcs=right_answers)
    scripted(trainer, [call(tool.__name__), "4<|end|>", "3<|end|>", call("no_such_tool")], "3<|end|>")
    verify_scores(trainer)
    for batch in train(trainer):
        assert is_shaped(batch)
        for i, ids in enumerate(batch.completion_ids):
            result = ids[batch.tool_mask[i] == 0]
            assert not batch.scores.mask[i][batch.tool_mask[i] == 0].any()
            if i % 4 == 0:
                assert tokenizer.decode(result) == "<|tool|>wait, that is 3<|end|><|assistant|>"
                assert "wait, that is 3" in batch.rollouts[i].completion
            # Its schemas stay in the teacher's prompt.
            assert f'"name": "{tool.__name__}"' in tokenizer.decode(batch.teacher["teacher_prompt_ids"][i])
        assert [rollout.correct for rollout in batch.rollouts] == [True, False, True, True] * 2
    # The tool says "wait", the model does not.
    assert all(entry["completions/epistemic_words"] == 0 for entry in step_logs(trainer))


def test_a_rollout_cut_off_inside_a_tools_result_is_no_context(tool_user, tmp_path):
    model, tokenizer = tool_user
    config = RLRTConfig(**distill_settings(tmp_path, max_completion_length=128))
    always = lambda completions, **kwargs: [1.0] * len(completions)  # noqa: E731
    trainer = build(RLRTTrainer, config, model, tokenizer, tools=[add], reward_funcs=always)
    scripted(trainer, [call("add"), "4<|end|>"], "")
    seen = watch_signals(trainer)
    compute_loss(trainer, [sums()[7]] * 4)
    assert [rollout.correct for rollout in seen[0].rollouts] == [False, True, False, True]
    assert [rollout.peers for rollout in seen[0].rollouts] == [("4", "4"), ("4",), ("4", "4"), ("4",)]


class Riddle:
    """An environment that asks, judges and has a tool."""

    def reset(self, **row) -> str:
        self.asked = row.get("riddle", "1+2=")
        self.tried: list[str] = []
        return self.asked

    def guess(self, number: str) -> str:
        """Try a number.

        Args:
            number: The number.
        """
        self.tried.append(number)
        return "Hmm, no." if number != "3" else "Yes."

    def get_reward(self) -> float:
        return float("3" in self.tried)


def guess(number: int) -> str:
    return f'<call>{{"name": "guess", "arguments": {{"number": "{number}"}}}}</call><|end|>'


@pytest.mark.parametrize("data", ["own", "dataset", "routed"])
def test_environments(data, tool_user, tmp_path):
    model, tokenizer = tool_user
    rows = [{"prompt": [{"role": "user", "content": "Solve "}], "riddle": "2+1=", "environment": "a"}] * 8
    dataset = {
        "own": None,
        "dataset": Dataset.from_list(rows).remove_columns("environment"),
        "routed": Dataset.from_list(rows).remove_columns("prompt"),
    }[data]
    config = RLRTConfig(**distill_settings(tmp_path, max_completion_length=128))
    trainer = build(
        RLRTTrainer,
        config,
        model,
        tokenizer,
        train_dataset=dataset,
        environment_factory={"a": Riddle} if data == "routed" else Riddle,
        reward_funcs=None,
    )
    assert trainer.reward_func_names == ["Riddle"]
    scripted(trainer, [guess(3), guess(5)], "ok<|end|>")
    seen = watch_signals(trainer)
    trainer.train()
    asked = {"own": "1+2=", "dataset": "Solve 2+1=", "routed": "2+1="}[data]
    for batch in seen:
        check(batch)
        assert is_shaped(batch)
        assert [rollout.correct for rollout in batch.rollouts] == [True, False] * 4
        for rollout, ids in zip(batch.rollouts, batch.teacher["teacher_prompt_ids"], strict=True):
            assert f"[{rollout.peers[0]}]{asked}<|end|>" in tokenizer.decode(ids)
            assert '"name": "guess"' in tokenizer.decode(ids)


def test_gold_without_a_dataset_is_refused(tool_user, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, context="gold"))
    with pytest.raises(ValueError, match=r"context='gold' shows the teacher a gold solution.*context='peer'"):
        build(
            RLRTTrainer, config, *tool_user, train_dataset=None, environment_factory=Riddle, reward_funcs=right_answers
        )


@pytest.mark.parametrize("form", ["plain", "conversation"])
def test_custom_rollouts_with_masked_feedback(form, model, tokenizer, tmp_path):
    def rollouts(prompts, trainer):
        """The model writes, the environment answers, the model writes again."""
        texts = [PROMPTS["conversation"](p) if isinstance(p, str) else p for p in prompts]
        turns = [("1", "<|user|>no<|end|>", f"{i % 2 + 2}<|end|>") for i in range(len(prompts))]
        parts = [[tokenizer(text)["input_ids"] for text in turn] for turn in turns]
        ids = [[*a, *b, *c] for a, b, c in parts]
        return {
            "prompt_ids": [
                tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=False) for t in texts
            ],
            "completion_ids": ids,
            "logprobs": [[-1.0] * len(row) for row in ids],
            "env_mask": [[1] * len(a) + [0] * len(b) + [1] * len(c) for a, b, c in parts],
            "feedback": [f"feedback {i}" for i in range(len(prompts))],
        }

    rows = [{**row, "prompt": PROMPTS[form](row["prompt"][0]["content"])} for row in sums()]
    config = RLRTConfig(
        **distill_settings(
            tmp_path, max_completion_length=32, context_placement="system", teacher_template="[{context}]"
        )
    )
    trainer = build(
        RLRTTrainer,
        config,
        model,
        tokenizer,
        train_dataset=Dataset.from_list(rows),
        rollout_func=rollouts,
        reward_funcs=lambda completions, **kwargs: [float(i % 2) for i in range(len(completions))],
        context_builder=lambda rollout: rollout.row["feedback"],
    )
    for batch in train(trainer):
        feedback = batch.tool_mask == 0
        assert (feedback.sum(dim=1) == 4).all()
        assert not batch.scores.mask[feedback].any()
        assert torch.equal(batch.advantages[feedback], batch.plain.unsqueeze(1).expand_as(feedback)[feedback])
        for i, ids in enumerate(batch.teacher["teacher_prompt_ids"]):
            assert f"[feedback {i}]" in tokenizer.decode(ids)


# ---- images ----------------------------------------------------------------------------------------------------------


def picture(seed: int, width: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, width, 3), dtype=np.uint8))


def pictures(pick: Any) -> Dataset:
    """Questions of different lengths about pictures of different widths; `pick(i)` pictures in row i."""
    rows = [
        {
            "prompt": [{"role": "user", "content": "?" * (i + 1)}],
            "images": [picture(i + j, 16 + 8 * (i % 2)) for j in range(pick(i))],
            "solution": "x" * (i + 1),
        }
        for i in range(8)
    ]
    return Dataset.from_list(rows)


def vlm_settings(tmp_path: Any, **overrides: Any) -> dict[str, Any]:
    return distill_settings(
        tmp_path,
        **{
            "context": "gold",
            "context_placement": "system",
            "teacher_template": "[{context}]",
            "generation_kwargs": OFTEN_DONE,
            "learning_rate": 1e-2,
            **overrides,
        },
    )


MAKERS = {"llava": tiny_llava, "qwen2_vl": tiny_qwen2_vl}
VLM_CASES = {
    "one": (lambda i: 1, {}),
    "several": (lambda i: 1 + i % 2, {"num_iterations": 2}),
    "base": (lambda i: 1, {"teacher_model_kind": "base", "max_steps": 3}),
    "lora": (lambda i: 1, {"teacher_model_kind": "base", "max_steps": 3}),
    "peers": (lambda i: 1, {"context": "peer", "max_steps": 4}),
    "split": (
        lambda i: 1,
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "pad_to_multiple_of": 8},
    ),
}


@pytest.mark.parametrize("case", VLM_CASES)
@pytest.mark.parametrize("maker", MAKERS)
def test_prompts_with_images(maker, case, tmp_path):
    model, processor = MAKERS[maker]()
    pick, overrides = VLM_CASES[case]
    config = RLRTConfig(**vlm_settings(tmp_path, **overrides))
    peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2) if case == "lora" else None
    start = copy.deepcopy(model)
    trainer = build(RLRTTrainer, config, model, processor, train_dataset=pictures(pick), peft_config=peft)

    def media(batch, ids):
        inputs = {key: batch[key] for key in ("pixel_values", "image_grid_thw") if key in batch}
        if "mm_token_type_ids" in batch:
            ids = torch.cat([ids, batch["completion_ids"]], dim=1)
            inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
        return inputs

    verify_scores(trainer, start=start if case in ("base", "lora") else None, media=media)
    for batch in train(trainer):
        assert batch.pixel_values is not None
        for own, sees in zip(batch_ids(batch.prompt_ids, batch.prompt_mask), teacher_ids(batch), strict=True):
            assert sees[len(sees) - len(own) :] == own


def teacher_ids(batch: Any) -> list[list[int]]:
    return batch_ids(batch.teacher["teacher_prompt_ids"], batch.teacher["teacher_prompt_mask"])


def test_a_vision_language_model_without_images(tmp_path):
    model, processor = tiny_llava()
    config = RLRTConfig(**vlm_settings(tmp_path))
    train(build(RLRTTrainer, config, model, processor, train_dataset=pictures(lambda i: 1).remove_columns("images")))


def test_images_under_user_placement_are_refused(tmp_path):
    model, processor = tiny_llava()
    config = RLRTConfig(**vlm_settings(tmp_path, context_placement="user"))
    with pytest.raises(ValueError, match=r"context_placement='user'.*context_placement='system'"):
        build(RLRTTrainer, config, model, processor, train_dataset=pictures(lambda i: 1))


def test_a_template_that_drops_the_system_turn_is_refused_at_construction(tmp_path):
    model, processor = tiny_llava()
    loop = "{% for m in messages %}"
    processor.chat_template = processor.chat_template.replace(loop, "{% for m in messages if m['role'] == 'user' %}")
    with pytest.raises(ValueError, match="wrote the message with the context 0 times"):
        build(
            RLRTTrainer,
            RLRTConfig(**vlm_settings(tmp_path)),
            model,
            processor,
            train_dataset=pictures(lambda i: 1),
        )


def test_a_tool_that_returns_an_image(tmp_path):
    def look(where: str) -> list:
        """Look somewhere.

        Args:
            where: The place.
        """
        return [{"type": "image", "image": picture(3, 24)}, {"type": "text", "text": "there"}]

    model, processor = tiny_qwen2_vl()
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([AddedToken("<|tool|>", special=True)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    calls = "{% for c in m.get('tool_calls') or [] %}{{ '<call>' + (c['function'] | tojson) + '</call>' }}{% endfor %}"
    processor.chat_template = processor.chat_template.replace("{{ '<|end|>' }}", calls + "{{ '<|end|>' }}")
    tokenizer.response_template = TOOL_RESPONSE
    config = RLRTConfig(**vlm_settings(tmp_path, max_completion_length=200, context="peer", max_steps=1))
    trainer = build(
        RLRTTrainer,
        config,
        model,
        processor,
        train_dataset=pictures(lambda i: 1),
        tools=[look],
        reward_funcs=lambda completions, **kwargs: [float(i % 2) for i in range(len(completions))],
    )
    wanted = '<call>{"name": "look", "arguments": {"where": "up"}}</call><|end|>'
    scripted(trainer, [wanted, "2<|end|>", "3<|end|>", wanted], "4<|end|>")

    def media(batch, ids):
        types = (torch.cat([ids, batch["completion_ids"]], dim=1) == model.config.image_token_id).long()
        inputs = {"pixel_values": batch["pixel_values"], "image_grid_thw": batch["image_grid_thw"]}
        return {**inputs, "mm_token_type_ids": types}

    verify_scores(trainer, media=media)
    (batch,) = train(trainer)
    assert batch.num_images == [2, 1, 1, 2] * 2
    assert not batch.scores.mask[batch.completion_ids == model.config.image_token_id].any()
