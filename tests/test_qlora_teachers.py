"""Every teacher over a base in 4 bits, asked for by a recipe: what it scores is what a plain forward gives."""

import importlib.util
from typing import Any

import contract
import pytest
import torch
import yaml
from helpers import distill_settings, sums, watch_signals
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from tiny_policy import build_model, build_tokenizer, supervised_steps
from transformers import TrainerCallback

from trl_selfdistill.cli.arguments import parse, read_command_line
from trl_selfdistill.cli.train import build

RATE = 0.3
TOLERANCE = 0.02
"""Nats. The adapter of a quantised base is bfloat16 (TRL casts it), and other padding rounds in another way."""
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy that says sums, in widths that the 4-bit kernel for CPUs can do (multiples of 64), and the sums."""
    folder = tmp_path_factory.mktemp("qlora")
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, head_dim=64, intermediate_size=256)
    supervised_steps(model, tokenizer, steps=40)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    sums().to_json(folder / "sums.jsonl")
    return folder


def from_recipe(trainer: Any, folder: Any, out: Any, **settings: Any) -> Any:
    """The trainer that `trl-selfdistill` makes of a recipe for QLoRA."""
    recipe = {
        **distill_settings(out, learning_rate=0.02, optim="adamw_torch", max_steps=4),
        **contract.own_settings(trainer),
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "sums.jsonl"),
        "reward_funcs": ["helpers.lenient_reward"],
        "dtype": "float32",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "use_peft": True,
        "lora_r": 4,
        "lora_dropout": 0.0,
        "lora_target_modules": "all-linear",
        **settings,
    }
    file = out / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    line = read_command_line(["--config", str(file)], trainer.config_class)
    return build(trainer, parse(line, trainer.config_class))


def adapter_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(trainer.model).items()}


class Adapters(TrainerCallback):
    """The adapter before every step, and at the end."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(adapter_of(self.trainer))

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(adapter_of(self.trainer))


def averages(adapters: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The average after 0, 1, 2 ... updates, by hand: it starts as the policy and follows it after every step."""
    rows = [{name: tensor.double() for name, tensor in adapters[0].items()}]
    for adapter in adapters[1:]:
        rows.append({name: (1 - RATE) * old + RATE * adapter[name].double() for name, old in rows[-1].items()})
    return rows


@torch.no_grad()
def logps(trainer: Any, prompt: torch.Tensor, prompt_mask: torch.Tensor, batch: Any) -> torch.Tensor:
    """Log-probabilities of the completions after `prompt`, by Transformers alone."""
    ids, mask = (
        torch.cat(pair, dim=1) for pair in ((prompt, batch.completion_ids), (prompt_mask, batch.completion_mask))
    )
    trainer.model.eval()
    logits = trainer.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    own = (logits / trainer.args.temperature).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    return own[:, -batch.completion_ids.size(1) :]


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize("trainer", [t for t in contract.trainers().values() if t.views], ids=lambda t: t.__name__)
@pytest.mark.parametrize("kind", ["live", "base", "ema"])
def test_u_is_that_of_the_right_teacher(kind, trainer, folder, tmp_path):
    made = from_recipe(
        trainer, folder, tmp_path, teacher_model_kind=kind, teacher_update_rate=RATE, teacher_sync_steps=1
    )
    layer = made.model.base_model.model.model.layers[0].mlp.up_proj.base_layer
    assert (type(layer).__name__, layer.weight.quant_type) == ("Linear4bit", "nf4")
    start = {name: tensor.clone() for name, tensor in made.model.named_parameters() if not tensor.requires_grad}
    adapters, seen = Adapters(), watch_signals(made)
    adapters.trainer = made
    made.add_callback(adapters)
    made.train()
    assert len(seen) == 4
    assert all(torch.equal(made.model.get_parameter(name), tensor) for name, tensor in start.items())
    average = averages(adapters.seen)
    if kind == "ema":
        shadow = {name.replace(".default", ""): tensor for name, tensor in made.teacher.shadow.items()}
        assert shadow.keys() == average[-1].keys()
        for name, tensor in shadow.items():
            torch.testing.assert_close(tensor.double(), average[-1][name], atol=1e-6, rtol=1e-6)
    taught = [step for step, batch in enumerate(seen) if batch.scores.mask.any()]  # a group may have no wrong rollout
    assert len(taught) >= 2
    for step in taught:
        batch = seen[step]
        given = {
            "live": adapters.seen[step],
            "base": {name: torch.zeros_like(tensor) for name, tensor in adapters.seen[step].items()},
            "ema": {name: tensor.float() for name, tensor in average[step].items()},
        }
        ratios = ratios_under(made, given, adapters.seen[step], batch)
        mask = batch.scores.mask
        found = {name: (u - batch.scores.log_ratio)[mask].abs().max().item() for name, u in ratios.items()}
        assert found[kind] < TOLERANCE, (step, found)
        if step == taught[-1]:
            assert min(value for name, value in found.items() if name != kind) > 5 * TOLERANCE, found


def ratios_under(trainer: Any, teachers: dict[str, Any], student: Any, batch: Any) -> dict[str, torch.Tensor]:
    """u of each teacher, given the adapters that each would score with."""
    view = next(iter(batch.views.values()))  # u is taken to the first one
    set_peft_model_state_dict(trainer.model, student)
    own = logps(trainer, batch.prompt_ids, batch.prompt_mask, batch)
    ratios = {}
    for name, adapter in teachers.items():
        set_peft_model_state_dict(trainer.model, adapter)
        ratios[name] = logps(trainer, view["teacher_prompt_ids"], view["teacher_prompt_mask"], batch) - own
    return ratios
