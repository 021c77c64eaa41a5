"""GRPO's settings under each trainer: docs/grpo_settings.md is complete, and each of its examples does what it says."""

import re
import warnings
from dataclasses import fields
from typing import Any, NamedTuple

import pytest
import torch
from helpers import ROOT, build, distill_settings, settings, state_of, step_logs
from transformers import TrainingArguments
from trl import GRPOConfig, GRPOTrainer

import trl_selfdistill
from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, RLRTConfig, RLRTTrainer
from trl_selfdistill.algorithms.antisd import antisd_advantages
from trl_selfdistill.algorithms.rlrt import rlrt_advantages
from trl_selfdistill.grpo_settings import KEEPS_TOKEN_CREDIT, POLICY_LOSS_FIELDS
from trl_selfdistill.trainer import DivergenceTrainer, TokenSignalTrainer

CONFIGS = {"RLRT": RLRTConfig, "AntiSD": AntiSDConfig, "OPSD": OPSDConfig}
STATUSES = {"works", "warns", "refused", "no effect"}
LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")


class Row(NamedTuple):
    names: list[str]
    example: str
    status: dict[str, str]

    def values(self) -> dict[str, Any]:
        return eval(f"dict({self.example})")  # the documentation's own example


def rows() -> list[Row]:
    """The rows of all tables of the page."""
    found = []
    for line in (ROOT / "docs/grpo_settings.md").read_text().splitlines():
        if line.startswith("| `"):
            names, example, *statuses, _ = [cell.strip() for cell in line.strip("|").split("|")]
            names = re.findall(r"`(\w+)`", names)
            found.append(Row(names, example.strip("`"), dict(zip(CONFIGS, statuses, strict=True))))
    return found


ROWS = rows()
CASES = [(row, name) for row in ROWS if row.example != "–" for name in CONFIGS]


def make_config(name: str, tmp_path: Any, values: dict[str, Any]) -> tuple[Any, list[str]]:
    """The configuration, and the messages of this package's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = CONFIGS[name](**distill_settings(tmp_path, **values))
    return config, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def test_every_field_stands_in_the_table():
    in_table = [name for row in ROWS for name in row.names]
    assert set(in_table) == {f.name for f in fields(GRPOConfig)}
    inherited = {f.name for f in fields(TrainingArguments)}
    for row in ROWS:
        assert set(row.status.values()) <= STATUSES, row
        if row.names[0] not in inherited:
            assert len(row.names) == 1, row
            assert row.names[0] in row.values(), row


@pytest.mark.parametrize(("row", "name"), CASES, ids=lambda v: v if isinstance(v, str) else v.example)
def test_the_table_tells_the_truth(row, name, tmp_path):
    values, status = row.values(), row.status[name]
    if status == "refused":
        with pytest.raises(ValueError, match=row.names[0]):
            make_config(name, tmp_path, values)
        return
    config, messages = make_config(name, tmp_path, values)
    assert [message for message in messages if row.names[0] in message] or status != "warns"
    assert not messages or status == "warns"
    assert getattr(config, row.names[0]) == values[row.names[0]]


@pytest.mark.parametrize("row", [r for r in ROWS if r.names[0] in POLICY_LOSS_FIELDS], ids=lambda row: row.example)
def test_with_grpos_loss_beside_the_divergence_its_settings_are_accepted(row, tmp_path):
    make_config("OPSD", tmp_path, {"opsd_policy_weight": 1.0, **row.values()})
    with pytest.raises(ValueError, match=r"would do nothing.*or opsd_policy_weight > 0"):
        make_config("OPSD", tmp_path, row.values())


def test_all_that_does_nothing_is_named_at_once_also_in_a_plain_grpo_config(model_dir, tokenizer, tmp_path):
    args = GRPOConfig(**settings(tmp_path, epsilon_high=0.28, loss_type="cispo", entropy_coef=0.01))
    message = (
        r"epsilon_high=0.28, loss_type='cispo', entropy_coef=0.01: .* "
        r"Set epsilon_high=None, loss_type='dapo', entropy_coef=0.0"
    )
    with pytest.raises(ValueError, match=message):
        build(OPSDTrainer, args, str(model_dir), tokenizer)
    with pytest.raises(ValueError, match="importance_sampling_level='token'"):
        args = GRPOConfig(**settings(tmp_path, importance_sampling_level="sequence"))
        build(RLRTTrainer, args, str(model_dir), tokenizer)
    build(OPSDTrainer, GRPOConfig(**settings(tmp_path)), str(model_dir), tokenizer)


def kinds(base: type) -> list[type]:
    exported = [getattr(trl_selfdistill, name) for name in trl_selfdistill.__all__ if name.endswith("Trainer")]
    return [trainer for trainer in exported if issubclass(trainer, base)]


@pytest.mark.parametrize("trainer", kinds(TokenSignalTrainer))
@pytest.mark.parametrize("loss", LOSSES)
def test_a_sequence_ratio_is_refused_in_every_loss_that_loses_token_credit(trainer, loss, tmp_path):
    given = settings(tmp_path, importance_sampling_level="sequence", loss_type=loss)
    if loss in KEEPS_TOKEN_CREDIT:
        trainer.config_class(**given)
        return
    with pytest.raises(ValueError, match=f"importance_sampling_level='sequence' with loss_type='{loss}'"):
        trainer.config_class(**given)


@pytest.mark.parametrize("trainer", kinds(DivergenceTrainer))
def test_every_divergence_refuses_what_acts_on_grpos_loss_alone(trainer, tmp_path):
    with pytest.raises(ValueError, match=r"entropy_coef=0\.5"):
        trainer.config_class(**distill_settings(tmp_path, entropy_coef=0.5))


def gradient(trainer: Any, advantages: torch.Tensor) -> torch.Tensor:
    """Of TRL's loss for two rollouts that an older policy made, with these token advantages."""
    torch.manual_seed(0)
    size, width = advantages.shape
    prompt, completion = torch.randint(0, 100, (size, 3)), torch.randint(0, 100, (size, width))
    batch = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": torch.ones_like(completion),
        "num_items_in_batch": torch.tensor(float(size * width)),
        "advantages": advantages,
    }
    ids, mask = torch.cat([prompt, completion], 1), torch.ones(size, 3 + width, dtype=torch.long)
    with torch.no_grad():
        now = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)[0]
    batch["old_per_token_logps"] = now + 0.05 * torch.randn_like(now)
    trainer.model.train().zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer.policy_loss(trainer.model, batch).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def test_the_losses_that_keep_a_tokens_credit_under_a_sequence_ratio_are_these(model, tokenizer, tmp_path):
    """Reversing the token advantages inside each row changes the gradient, or the ratio's level has erased them."""
    trainer = build(RLRTTrainer, RLRTConfig(**distill_settings(tmp_path)), model, tokenizer)
    torch.manual_seed(1)
    advantages = torch.randn(2, 12)
    for level, keeps in (("token", LOSSES), ("sequence", KEEPS_TOKEN_CREDIT)):
        trainer.importance_sampling_level = level
        for trainer.loss_type in LOSSES:
            plain, turned = gradient(trainer, advantages), gradient(trainer, advantages.flip(1))
            change = ((plain - turned).norm() / plain.norm()).item()
            assert change > 0.1 if trainer.loss_type in keeps else change < 1e-4, (level, trainer.loss_type, change)


def test_off_policy_masking_sees_the_rollouts_sign_in_rlrts_tokens_and_not_in_antisds():
    advantages, kept = torch.tensor([-0.3, 0.3, -1.2]), [[0.0], [1.0], [0.0]]
    torch.manual_seed(0)
    log_ratio, logps, ones = 3 * torch.randn(3, 200), torch.zeros(3, 200), torch.ones(3, 200)

    def mask(shaped: torch.Tensor) -> torch.Tensor:
        """Of rollouts that are far off policy."""
        return GRPOTrainer.get_off_policy_mask(shaped, logps, logps + 1, ones, 0.5)

    assert mask(advantages.unsqueeze(1)).tolist() == kept
    rlrt = rlrt_advantages(advantages, log_ratio, torch.ones(3).bool(), strength=1.0, clip=1.0)
    assert torch.equal(mask(rlrt) * rlrt, torch.tensor(kept) * rlrt)
    antisd = antisd_advantages(advantages, log_ratio, strength=0.5)
    assert not torch.equal(mask(antisd) * antisd, torch.tensor(kept) * antisd)


@pytest.mark.parametrize(
    ("sizes", "warned"),
    [
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 4}, True),
        ({"steps_per_generation": 1, "num_iterations": 2, "gradient_accumulation_steps": 4}, True),
        ({"steps_per_generation": 2, "num_iterations": 2, "gradient_accumulation_steps": 4}, False),
        ({"steps_per_generation": 8, "gradient_accumulation_steps": 4}, False),
        ({"gradient_accumulation_steps": 4}, False),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 4, "antisd_direction": "toward"}, False),
    ],
)
def test_a_gate_that_steps_several_times_per_optimiser_step_warns(sizes, warned, tmp_path):
    _, messages = make_config("AntiSD", tmp_path, sizes)
    assert bool(messages) == warned
    assert all(re.search("gate steps several times per optimiser step", message) for message in messages)


@pytest.mark.parametrize(
    ("steps_per_generation", "num_iterations", "gate_steps"), [(1, 1, 4), (2, 1, 2), (2, 2, 1), (4, 1, 1)]
)
def test_so_many_gate_steps_there_are(steps_per_generation, num_iterations, gate_steps, model_dir, tokenizer, tmp_path):
    sizes = {"steps_per_generation": steps_per_generation, "num_iterations": num_iterations}
    given = {"max_steps": 1, "gradient_accumulation_steps": 4, "context": "gold", "antisd_warmup": 9, **sizes}
    config, _ = make_config("AntiSD", tmp_path, given)
    trainer = build(AntiSDTrainer, config, str(model_dir), tokenizer)
    trainer.train()
    assert trainer.gate.steps == gate_steps


def test_truncated_rollouts_leave_the_divergence_if_told_so(model_dir, tokenizer, tmp_path):
    ends = []
    for masked in (False, True):
        config, _ = make_config("OPSD", tmp_path, {"max_completion_length": 1, "mask_truncated_completions": masked})
        trainer = build(OPSDTrainer, config, str(model_dir), tokenizer)
        trainer.train()
        assert [entry["completions/clipped_ratio"] for entry in step_logs(trainer)] != [0.0, 0.0]
        ends.append(state_of(trainer.model))
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
