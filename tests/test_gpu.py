"""What only a GPU can prove: the ops and the trainers on it. Without one, the same tests run on the CPU at toy size."""

import math

import pytest
import torch
from helpers import build, compute_loss, distill_settings, state_of, step_logs, sums, watch_signals
from ops_helpers import INTERPRETED, Problem, problem, solve
from peft import LoraConfig
from tiny_policy import build_model, supervised_steps
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.ops import linear_logps

pytestmark = pytest.mark.gpu

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SHAPE = (256, 1024, 50257) if ON_GPU else (17, 32, 101)  # N, H, V
FULL_VOCABULARY = (256, 256, 151936) if ON_GPU else (4, 8, 151936)
NUMBERS = 1e-4  # nats, and relative to the largest entry
GRADIENT = {torch.float32: 5e-4, torch.bfloat16: 1e-2}  # relative, of the norm
TRAINERS = {
    "rlrt": (RLRTTrainer, RLRTConfig),
    "antisd": (AntiSDTrainer, AntiSDConfig),
    "opsd": (OPSDTrainer, OPSDConfig),
}
needs_triton = pytest.mark.skipif(not ON_GPU and not INTERPRETED, reason="Triton kernels need a GPU or the interpreter")


def assert_near(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], gradient: float) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name].isfinite().all(), name
        difference = ours[name] - value
        if name.startswith("d_"):
            error, allowed = difference.norm().item(), gradient * value.norm().item()
        else:
            error, allowed = difference.abs().max().item(), NUMBERS * max(1.0, value.abs().max().item())
        assert error <= allowed, f"{name}: {error:.1e} > {allowed:.1e}"


def exact(p: Problem) -> Problem:
    return p.to(DEVICE, torch.float64)


def logps_of(p: Problem, trainable: tuple[str, ...], impl: str) -> dict[str, torch.Tensor]:
    """Log-probabilities, entropies and the gradients of a weighted sum of both."""
    leaves = {k: getattr(p, k).detach().clone().requires_grad_(k in trainable) for k in ("student", "weight", "bias")}
    logps, entropy = linear_logps(leaves["student"], leaves["weight"], p.targets, bias=leaves["bias"], impl=impl)
    scale = torch.linspace(-1.0, 1.0, len(logps), dtype=logps.dtype, device=logps.device)
    (scale * logps + 0.1 * scale.flip(0) * entropy).sum().backward()
    every = {"logps": logps, "entropy": entropy} | {f"d_{k}": leaves[k].grad for k in trainable}
    return {k: v.detach().double().cpu() for k, v in every.items()}


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize(("beta", "gap"), [(0.0, 0.3), (0.5, 0.3), (1.0, 0.3), (0.0, 0.02)])
def test_divergence_against_float64(beta, gap, dtype):
    """With a small gap, teacher and student nearly agree, and the gradient is a difference of nearly equal numbers."""
    p = problem(*SHAPE, bias=True, gap=gap, dtype=dtype)
    case = {"beta": beta, "token_clip": 0.1, "temperature": 1.2}
    expected = solve(exact(p), impl="reference", **case).tensors()
    assert_near(solve(p.to(DEVICE), **case).tensors(), expected, GRADIENT[dtype])


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("trainable", [("student", "weight", "bias"), ("student",)], ids=len)
def test_logps_against_float64(trainable, dtype):
    p = problem(*SHAPE, bias=True, dtype=dtype)
    expected = logps_of(exact(p), trainable, "reference")
    assert_near(logps_of(p.to(DEVICE), trainable, "auto"), expected, GRADIENT[dtype])


@needs_triton
@pytest.mark.parametrize(
    "case",
    [
        {"beta": 0.0, "entry_clip": 0.02, "token_clip": 0.1},
        {"beta": 0.5, "entry_clip": 0.02},
        {"beta": 1.0, "softcap": 7.0, "logit_scale": 0.7},
    ],
    ids=str,
)
def test_triton_row_kernels_agree_with_torch(case):
    p = problem(*SHAPE, bias=True, dtype=torch.float32).to(DEVICE)
    assert_near(solve(p, impl="liger", **case).tensors(), solve(p, impl="torch", **case).tensors(), 1e-3)


@needs_triton
def test_a_target_outside_the_vocabulary_is_nan_and_no_other_token():
    p = problem(*SHAPE, dtype=torch.float32).to(DEVICE)
    p.targets[1], p.targets[3] = SHAPE[2], -100
    # On a CPU, where the interpreter runs, the targets are checked before.
    if not ON_GPU:
        with pytest.raises(ValueError, match="targets"):
            linear_logps(p.student, p.weight, p.targets, impl="liger")
        return
    logps, entropy = linear_logps(p.student, p.weight, p.targets)
    assert logps.isnan().nonzero().flatten().tolist() == [1, 3]
    assert entropy.isfinite().all()


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
def test_no_nan_at_a_vocabulary_of_151936(dtype):
    """Logits of up to 80, and entries that are never sampled."""
    n, _, vocab = FULL_VOCABULARY
    p = problem(*FULL_VOCABULARY, bias=True, gap=1.0, dtype=torch.float64)
    p.weight.mul_(80.0 / (p.student @ p.weight.T).abs().max())
    p.bias[:100] = -math.inf
    p.targets.clamp_(min=100)
    p = p.to(dtype)
    case = {"beta": 0.5, "token_clip": 0.05}
    expected, ours = solve(exact(p), impl="reference", **case).tensors(), solve(p.to(DEVICE), **case).tensors()
    assert all(value.isfinite().all() for value in ours.values())
    assert (ours["student_logps"] <= 0).all() and len(ours["student_logps"]) == n
    assert ((ours["student_entropy"] >= 0) & (ours["student_entropy"] <= math.log(vocab))).all()
    assert_near(ours, expected, GRADIENT[dtype])


def config_of(config_class, folder, **more):
    common = {"context": "gold", "use_cpu": not ON_GPU, "bf16": ON_GPU, "learning_rate": 1e-2, "max_steps": 1}
    return config_class(**distill_settings(folder, **common | more))


def assert_trained(trainer, before):
    for entry in step_logs(trainer):
        assert all(math.isfinite(v) for v in entry.values() if isinstance(v, float)), entry
        assert entry["grad_norm"] > 0
    after = state_of(trainer.model)
    assert any(not torch.equal(before[name], value) for name, value in after.items() if value.is_floating_point())
    assert next(trainer.model.parameters()).device.type == DEVICE


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_step_with_gradient_checkpointing_is_the_step_without(kind, model_dir, tokenizer, tmp_path):
    trainer_class, config_class = TRAINERS[kind]
    norms = []
    for checkpointing in (True, False):
        policy = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        config = config_of(config_class, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing)
        trainer = build(trainer_class, config, policy, tokenizer)
        before = state_of(trainer.model)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == checkpointing
        assert_trained(trainer, before)
        norms.append(step_logs(trainer)[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=2e-2 if ON_GPU else 1e-4)


def test_scores_are_those_of_a_plain_forward(model, tokenizer, tmp_path):
    trainer = build(RLRTTrainer, config_of(RLRTConfig, tmp_path, bf16=False), model, tokenizer)
    seen = watch_signals(trainer)
    compute_loss(trainer, [row for row in sums().select([7, 93]) for _ in range(4)])
    (batch,) = seen
    for ids, mask, scored in (
        (batch.prompt_ids, batch.prompt_mask, batch.scores.student_logps),
        (batch.teacher["teacher_prompt_ids"], batch.teacher["teacher_prompt_mask"], batch.scores.teacher_logps),
    ):
        inputs = {"input_ids": torch.cat([ids, batch.completion_ids], 1)}
        inputs["attention_mask"] = torch.cat([mask, batch.completion_mask], 1)
        with torch.no_grad():
            logits = trainer.model.eval()(**{k: v.to(DEVICE) for k, v in inputs.items()}).logits.float()
        written = batch.completion_ids.to(DEVICE)
        logps = logits[:, -written.size(1) - 1 : -1].log_softmax(-1).gather(-1, written[..., None])[..., 0]
        real = batch.scores.mask.to(DEVICE)
        assert real.any()
        torch.testing.assert_close(scored.to(DEVICE)[real], logps[real], atol=1e-3, rtol=0)


def test_qlora_nf4(tokenizer, tmp_path):
    policy = build_model(tokenizer, intermediate_size=256)  # the CPU kernel of bitsandbytes takes multiples of 64
    supervised_steps(policy, tokenizer, steps=10)
    policy.save_pretrained(tmp_path / "policy")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if ON_GPU else torch.float32,
        bnb_4bit_use_double_quant=True,
    )
    trainer = build(
        RLRTTrainer,
        config_of(RLRTConfig, tmp_path, teacher_model_kind="base", gradient_checkpointing=True),
        str(tmp_path / "policy"),
        tokenizer,
        quantization_config=nf4,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    assert trainer.model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    before = state_of(trainer.model)
    trainer.train()
    assert_trained(trainer, before)


def test_continuous_batching(model_dir, tokenizer, tmp_path):
    config = config_of(
        RLRTConfig,
        tmp_path,
        use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"num_blocks": 64, "max_batch_tokens": 64},
    )
    trainer = build(RLRTTrainer, config, str(model_dir), tokenizer)
    before = state_of(trainer.model)
    trainer.train()
    assert_trained(trainer, before)
    assert step_logs(trainer)[0]["completions/mean_length"] >= 1
