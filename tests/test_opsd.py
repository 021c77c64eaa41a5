import functools

import pytest
import torch
from datasets import Dataset
from helpers import build, distill_settings, exact_reward, lenient_reward, state_of, step_logs, sums
from peft import LoraConfig, PromptTuningConfig, TaskType

from trl_selfdistill import OPSDConfig, OPSDTrainer
from trl_selfdistill.algorithms.opsd import no_reward
from trl_selfdistill.context.builders import NO_PRIVILEGED_TEXT
from trl_selfdistill.trainer import divergence
from trl_selfdistill.trainer.health_check import UnhealthyRunError


def make(model_dir, tokenizer, tmp_path, *, config=None, lora=False, **kwargs):
    settings = distill_settings(tmp_path, **{"num_generations": 1, **(config or {})})
    peft = LoraConfig(r=4, target_modules="all-linear") if lora else None
    arguments = {"reward_funcs": None, "peft_config": peft, **kwargs}
    return build(OPSDTrainer, OPSDConfig(**settings), str(model_dir), tokenizer, **arguments)


def test_no_reward_one_rollout_and_the_papers_defaults(model_dir, tokenizer, tmp_path):
    config = OPSDConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert type(config.num_generations) is int
    assert config.num_generations == 1
    assert (config.teacher_model_kind, config.context) == ("base", "gold")
    assert (config.opsd_beta, config.opsd_entry_clip, config.opsd_token_clip) == (0.0, None, 0.05)
    assert config.chat_template_kwargs == {"enable_thinking": False}
    assert config.teacher_chat_template_kwargs == {"enable_thinking": True}
    trainer = make(model_dir, tokenizer, tmp_path)
    before = state_of(trainer.model)
    trainer.train()
    assert trainer.reward_funcs == [no_reward]
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), state_of(trainer.model).values(), strict=True))
    assert {"opsd/divergence", "opsd/clipped_tokens", "self_distill/log_ratio"} <= step_logs(trainer)[0].keys()


@pytest.mark.parametrize("size", [1, 3])
def test_any_batch_size_goes_with_one_rollout(size, tmp_path):
    config = OPSDConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=size)
    assert config.generation_batch_size == size


def naive_loss(trainer, batch, teacher_model):
    """The token mean over the whole batch from full float32 logits."""
    completion, mask = batch["completion_ids"], batch["completion_mask"].bool() & batch["has_context"].unsqueeze(1)

    def log_probs(model, ids, prompt_mask):
        logits = model(
            input_ids=torch.cat([ids, completion], 1),
            attention_mask=torch.cat([prompt_mask, batch["completion_mask"]], 1),
        ).logits
        return (logits[:, -completion.size(1) - 1 : -1].float() / trainer.temperature).log_softmax(-1)

    student = log_probs(trainer.model, batch["prompt_ids"], batch["prompt_mask"])
    with torch.no_grad():
        teacher = log_probs(teacher_model, batch["teacher_prompt_ids"], batch["teacher_prompt_mask"])
    tokens = (teacher.exp() * (teacher - student)).sum(-1)
    if trainer.args.opsd_token_clip is not None:
        tokens = tokens * (trainer.args.opsd_token_clip / tokens.detach()).clamp(max=1)
    return tokens[mask].sum() / mask.sum()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_loss_and_gradient_are_those_of_full_logits(lora, clip, model_dir, tokenizer, tmp_path):
    trainer = make(
        model_dir, tokenizer, tmp_path, lora=lora, config={"opsd_token_clip": clip, "temperature": 1.3, "max_steps": 1}
    )
    trainer.current_gradient_accumulation_steps = 1
    rows = [{**trainer.train_dataset[i], "solution": None if i == 2 else "12"} for i in range(8)]
    batch = trainer._generate_and_score_completions(rows)
    assert batch["has_context"].tolist() == [True, True, False, *[True] * 5]
    with trainer.teacher.weights(trainer.model) as teacher:
        expected = naive_loss(trainer, batch, teacher) if not lora else None
    if lora:  # a fresh adapter adds nothing, so the policy itself is the base
        expected = naive_loss(trainer, batch, trainer.model)
    loss = trainer._compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_micro_batches_of_one_and_of_eight_agree_although_lengths_differ(model_dir, tokenizer, tmp_path):
    ends, logs = [], []
    for size in (8, 1):
        trainer = make(
            model_dir,
            tokenizer,
            tmp_path,
            config={
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": 8 // size,
                "optim": "sgd",
                "learning_rate": 0.1,
                "max_steps": 3,
            },
        )
        trainer.train()
        ends.append(state_of(trainer.model))
        logs.append(step_logs(trainer))
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], atol=1e-6, rtol=0)


def test_back_ends_train_alike(model_dir, tokenizer, tmp_path, monkeypatch):
    runs = []
    op = divergence.linear_divergence
    for impl in ("reference", "torch"):
        monkeypatch.setattr(divergence, "linear_divergence", functools.partial(op, impl=impl))
        trainer = make(model_dir, tokenizer, tmp_path, lora=True, config={"max_steps": 5})
        trainer.train()
        runs.append([entry["loss"] for entry in step_logs(trainer)])
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)
    assert all(loss != 0 for loss in runs[0])


@pytest.mark.parametrize("kind", ["live", "base", "ema"])
def test_a_teacher_prompt_equal_to_the_students_gives_no_divergence(kind, model_dir, tokenizer, tmp_path):
    trainer = make(
        model_dir,
        tokenizer,
        tmp_path,
        config={"teacher_template": "{prompt}{context}", "teacher_model_kind": kind, "max_steps": 1},
        context_builder=lambda rollout: NO_PRIVILEGED_TEXT,
    )
    trainer.train()
    entry = step_logs(trainer)[0]
    assert abs(entry["opsd/divergence"]) <= 1e-6
    assert entry["grad_norm"] <= 1e-4


def test_a_frozen_base_teacher_keeps_its_own_head(model_dir, tokenizer, tmp_path):
    # With tied embeddings full fine-tuning moves the head; the teacher must go on with the old one.
    trainer = make(
        model_dir,
        tokenizer,
        tmp_path,
        config={
            "teacher_template": "{prompt}{context}",
            "max_steps": 6,
            "learning_rate": 1e-2,
            "opsd_policy_weight": 1.0,
        }
        | {"num_generations": 4},
        reward_funcs=lenient_reward,
        context_builder=lambda rollout: NO_PRIVILEGED_TEXT,
    )
    trainer.train()
    moved = [entry["opsd/divergence"] for entry in step_logs(trainer)]
    assert moved[0] <= 1e-6
    assert moved[-1] > 1e-4, "a teacher that shared the student's head would follow it"


def test_rewards_are_logged_and_used_with_a_policy_weight(model_dir, tokenizer, tmp_path):
    losses = {}
    for weight in (0.0, 1.0):
        trainer = make(
            model_dir,
            tokenizer,
            tmp_path,
            config={"num_generations": 4, "opsd_policy_weight": weight, "max_steps": 1},
            reward_funcs=lenient_reward,
        )
        trainer.train()
        entry = step_logs(trainer)[0]
        assert "rewards/lenient_reward/mean" in entry
        losses[weight] = (entry["loss"], entry["grad_norm"])
    assert losses[0.0] != losses[1.0]


def test_rows_without_a_solution_have_no_teacher_and_a_batch_without_any_is_zero(model_dir, tokenizer, tmp_path):
    rows = {"prompt": [[{"role": "user", "content": "1+1="}]] * 16, "solution": [None] * 8 + ["2"] * 8}
    config = {"shuffle_dataset": False}
    with pytest.warns(UserWarning, match="8 of 16"):
        trainer = make(model_dir, tokenizer, tmp_path, config=config, train_dataset=Dataset.from_dict(rows))
    trainer.train()
    entry = step_logs(trainer)[0]
    assert (entry["loss"], entry["grad_norm"]) == (0.0, 0.0)
    assert entry["self_distill/has_teacher"] == 0.0


def test_evaluation(model_dir, tokenizer, tmp_path):
    trainer = make(
        model_dir,
        tokenizer,
        tmp_path,
        config={"per_device_eval_batch_size": 4, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1},
        eval_dataset=sums().select(range(8)),
    )
    trainer.train()
    entry = next(e for e in trainer.state.log_history if "eval_loss" in e)
    assert entry["eval_loss"] == pytest.approx(min(entry["eval_opsd/divergence"], 0.05), rel=0.5)


def test_the_published_clip_warns_where_it_cuts_most_of_the_teacher(tiny, tmp_path):
    model, tokenizer = tiny
    settings = distill_settings(tmp_path, num_generations=1, opsd_entry_clip=0.05, opsd_token_clip=None, max_steps=1)
    args = OPSDConfig(**settings, health_action="stop")
    trainer = OPSDTrainer(model, exact_reward, args, sums(), processing_class=tokenizer)
    with pytest.raises(UnhealthyRunError, match=r"opsd_entry_clip cuts entries that hold \d+% of the teacher's mass"):
        trainer.train()
    assert step_logs(trainer)[0]["opsd/clipped_entry_mass"] > 0.5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"opsd_beta": 1.5}, "opsd_beta"),
        ({"opsd_entry_clip": 0.0}, "opsd_entry_clip"),
        ({"opsd_token_clip": -1.0}, "opsd_token_clip"),
        ({"opsd_policy_weight": -1.0}, "opsd_policy_weight"),
        ({"opsd_policy_weight": 1.0}, "num_generations"),
        ({"num_generations": 0}, "num_generations=0"),
        ({"opsd_token_clip": float("nan")}, "opsd_token_clip"),
        ({"beta": 0.1}, "beta=0.1"),
    ],
)
def test_config_names_the_bad_field(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        OPSDConfig(**distill_settings(tmp_path, **{"num_generations": 1, **config}))


def test_what_cannot_work_is_refused(model_dir, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="needs reward_funcs"):
        make(model_dir, tokenizer, tmp_path, config={"opsd_policy_weight": 1.0, "num_generations": 2})
    with pytest.raises(ValueError, match="prompt or prefix tuning"):
        prompt = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
        make(model_dir, tokenizer, tmp_path, peft_config=prompt)


def test_without_rewards_nothing_is_said_to_be_wrong(model_dir, tokenizer, tmp_path):
    trainer = make(model_dir, tokenizer, tmp_path, config={"teacher_template": "{prompt}<{context}|{feedback}>"})
    lessons = []
    apply = trainer.apply_teacher
    trainer.apply_teacher = lambda batch, lesson: (lessons.append(lesson), apply(batch, lesson))[1]
    trainer.train()
    assert not any(rollout.assessed for lesson in lessons for rollout in lesson.rollouts)


def test_the_teacher_thinks_where_it_has_a_prompt_of_its_own(tmp_path):
    settings = distill_settings(tmp_path, teacher_template=None, num_generations=2)
    assert OPSDConfig(**settings).teacher_chat_template_kwargs == {"enable_thinking": True}
    system = OPSDConfig(**settings, context_placement="system")
    assert system.teacher_chat_template_kwargs is None, "the prompt's own tokens, header included, are the student's"
