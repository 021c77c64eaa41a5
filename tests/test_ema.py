import pytest
import torch
from helpers import assert_same_state, build, distill_settings, state_of, step_logs
from peft import LoraConfig
from torch import nn

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.teachers.ema import EMACallback, EMATeacher


def policy() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0])
def test_fifty_steps_against_a_float64_loop(rate):
    model = policy()
    teacher = EMATeacher(model, rate=rate, sync_steps=1)
    expected = {n: p.detach().double() for n, p in model.named_parameters() if p.requires_grad}
    start = {n: t.clone() for n, t in teacher.shadow.items()}
    assert expected.keys() == teacher.shadow.keys()
    for _ in range(50):
        for p in model.parameters():
            p.data += 0.1 * torch.randn_like(p)
        teacher.update(model)
        for n, p in model.named_parameters():
            if n in expected:
                expected[n] = (1 - rate) * expected[n] + rate * p.detach().double()
    for n, tensor in teacher.shadow.items():
        torch.testing.assert_close(tensor.double(), expected[n], atol=1e-6, rtol=1e-6)
        if rate == 0.0:
            assert torch.equal(tensor, start[n])
        if rate == 1.0:
            assert torch.equal(tensor, model.get_parameter(n))


def test_the_float32_shadow_of_a_bfloat16_policy_keeps_small_updates():
    # A step of 1e-4 on weights of 1 is below bfloat16's resolution: a bfloat16 shadow stands still, float32 moves.
    ends = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
        model.weight.data.fill_(1.0)
        teacher = EMATeacher(model, rate=0.01, sync_steps=1, dtype=dtype)
        model.weight.data.fill_(1.0078125)
        for _ in range(20):
            teacher.update(model)
        ends[dtype] = teacher.shadow["weight"].item()
    assert ends[torch.float32] == pytest.approx(1 + 0.0078125 * (1 - 0.99**20), abs=1e-6)
    assert ends[torch.bfloat16] == 1.0


def test_scoring_swaps_the_weights_and_puts_them_back_even_after_an_error():
    model = policy()
    teacher = EMATeacher(model, rate=0.1, sync_steps=1)
    start = {n: t.clone() for n, t in teacher.shadow.items()}
    model[0].weight.data += 1.0
    own = state_of(model)
    with teacher.weights(model) as scoring:
        assert torch.equal(scoring[0].weight, start["0.weight"])
    assert_same_state(state_of(model), own)
    with pytest.raises(RuntimeError, match="in the forward"), teacher.weights(model):
        raise RuntimeError("in the forward")
    assert_same_state(state_of(model), own)


def test_the_callback_counts_optimiser_steps():
    model = policy()
    teacher = EMATeacher(model, rate=1.0, sync_steps=3)
    callback = EMACallback(teacher)
    updated = []
    for step in range(1, 8):
        model[0].weight.data += 1.0
        callback.on_step_end(None, type("State", (), {"global_step": step}), None, model=model)
        updated.append(torch.equal(teacher.shadow["0.weight"], model[0].weight))
    assert updated == [False, False, True, False, False, True, False]


def test_state_of_another_model_is_refused():
    teacher = EMATeacher(policy(), rate=0.1, sync_steps=1)
    state = teacher.state()
    with pytest.raises(ValueError, match=r"1 parameters are different.*'0.weight'"):
        teacher.load_state({n: t for n, t in state.items() if n != "0.weight"})
    with pytest.raises(ValueError, match="does not fit"):
        teacher.load_state({**state, "0.weight": torch.zeros(1)})


@pytest.mark.parametrize("lora", [False, True])
def test_an_ema_teacher_trails_the_policy_and_updates_once_an_optimiser_step(lora, model_dir, tokenizer, tmp_path):
    config = RLRTConfig(
        **distill_settings(
            tmp_path,
            teacher_model_kind="ema",
            teacher_update_rate=0.25,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=4,
            max_steps=3,
        )
    )
    peft = LoraConfig(r=4, target_modules="all-linear") if lora else None
    trainer = build(RLRTTrainer, config, str(model_dir), tokenizer, peft_config=peft)
    shadow = {n: t.clone() for n, t in trainer.teacher.shadow.items()}
    assert all(("lora" in name) == lora for name in shadow)

    class Follow(EMACallback):
        updates = 0

        def on_step_end(self, args, state, control, model=None, **kwargs):
            Follow.updates += 1
            for n, p in model.named_parameters():
                if n in shadow:
                    shadow[n] = shadow[n].lerp(p.detach(), 0.25)

    trainer.add_callback(Follow(trainer.teacher))
    trainer.train()
    assert Follow.updates == 3
    for name, tensor in trainer.teacher.shadow.items():
        torch.testing.assert_close(tensor, shadow[name])


def test_update_rate_one_is_the_live_teacher_of_the_step_before_and_zero_the_start(model_dir, tokenizer, tmp_path):
    runs = {}
    for kind, rate in (("live", 0.05), ("ema", 1.0), ("base", 0.05), ("ema", 0.0)):
        config = RLRTConfig(
            **distill_settings(tmp_path, teacher_model_kind=kind, teacher_update_rate=rate, max_steps=4)
        )
        trainer = build(RLRTTrainer, config, str(model_dir), tokenizer)
        trainer.train()
        runs[kind, rate] = [entry["self_distill/log_ratio"] for entry in step_logs(trainer)]
    assert runs["ema", 1.0] == runs["live", 0.05]
    assert runs["ema", 0.0] == pytest.approx(runs["base", 0.05], abs=1e-6)
    assert runs["live", 0.05] != runs["base", 0.05]


@pytest.mark.parametrize(
    "bad", [{"teacher_update_rate": 1.5}, {"teacher_sync_steps": 0}, {"teacher_ema_dtype": "float16"}]
)
def test_config_names_the_bad_field(bad, tmp_path):
    with pytest.raises(ValueError, match=next(iter(bad))):
        AntiSDConfig(**distill_settings(tmp_path, **bad))


def test_a_checkpoint_without_or_with_foreign_state_is_refused(model_dir, tokenizer, tmp_path):
    def make(trainer_class, **kwargs):
        config = trainer_class.config_class(
            **distill_settings(tmp_path, save_strategy="steps", save_steps=1, context="gold", **kwargs)
        )
        return build(trainer_class, config, str(model_dir), tokenizer)

    make(RLRTTrainer, max_steps=1).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=r"selfdistill_state.json was not written by AntiSD"):
        make(AntiSDTrainer).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"no selfdistill_teacher.safetensors, without which RLRT"):
        make(RLRTTrainer, teacher_model_kind="ema").train(resume_from_checkpoint=checkpoint)
    (tmp_path / "checkpoint-1/selfdistill_state.json").unlink()
    with pytest.raises(ValueError, match=r"no selfdistill_state.json, without which AntiSD"):
        make(AntiSDTrainer).train(resume_from_checkpoint=checkpoint)
    make(RLRTTrainer, max_steps=2).train(resume_from_checkpoint=checkpoint)  # live: nothing to remember


def test_a_trainer_that_keeps_no_state_notices_a_foreign_checkpoint(model_dir, tokenizer, tmp_path):
    settings = distill_settings(tmp_path, save_strategy="steps", save_steps=1, max_steps=1, context="gold")
    build(AntiSDTrainer, AntiSDConfig(**settings), str(model_dir), tokenizer).train()
    trainer = build(RLRTTrainer, RLRTConfig(**settings), str(model_dir), tokenizer)
    with pytest.raises(ValueError, match="was not written by RLRT"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_finished_run_stays_finished_and_no_checkpoint_is_an_error(model_dir, tokenizer, tmp_path):
    def make():
        config = RLRTConfig(**distill_settings(tmp_path, save_strategy="steps", save_steps=1, max_steps=2))
        return build(RLRTTrainer, config, str(model_dir), tokenizer)

    with pytest.raises(ValueError, match="no complete checkpoint"):
        make().train(resume_from_checkpoint=True)
    first = make()
    first.train()
    again = make()
    assert again.train(resume_from_checkpoint=True).global_step == 2
    assert_same_state(state_of(first.model), state_of(again.model))
