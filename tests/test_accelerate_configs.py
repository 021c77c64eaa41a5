"""The Accelerate configurations of the package: TRL's keys, and every one really launches what it is named after."""

import importlib.util
import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from helpers import ROOT, distill_settings, run_script, sums
from tiny_policy import build_model, build_tokenizer

from trl_selfdistill.cli.configs import FOLDER, names

LAUNCH = (
    "import sys, trl_selfdistill.cli.launch as launch; launch.TRAIN = 'launched'; "
    "from trl_selfdistill.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Launched:
    """What a configuration must become on two processes of a CPU, and what a CPU needs beside it."""

    wrapper: str
    distributed_type: str
    split_weights: bool = False
    processes: int = 2
    settings: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    mixed_precision: str = "bf16"


QLORA = {
    "load_in_4bit": True,
    "use_peft": True,
    "lora_target_modules": ["all-linear"],
    "dtype": "bfloat16",
}
# With use_cpu, DeepSpeed is ignored; without it, transformers wants a GPU for bfloat16.
DEEPSPEED: dict[str, Any] = {
    "settings": {"use_cpu": False, "ddp_backend": "gloo", "bf16": False},
    "options": ("--mixed_precision", "no"),
    "mixed_precision": "no",
}
EXPECTED = {
    "single_gpu_qlora": Launched("PeftModelForCausalLM", "NO", processes=1, settings=QLORA),
    "multi_gpu": Launched("DistributedDataParallel", "MULTI_CPU"),
    "fsdp2": Launched("FSDPQwen3ForCausalLM", "FSDP", True),
    "fsdp2_qlora": Launched(
        "FSDPPeftModelForCausalLM", "FSDP", True, settings={**QLORA, "bnb_4bit_quant_storage": "bfloat16"}
    ),
    "zero2": Launched("DeepSpeedEngine", "DEEPSPEED", **DEEPSPEED),
    "zero3": Launched("DeepSpeedEngine", "DEEPSPEED", True, **DEEPSPEED),
}


def test_every_configuration_is_tested():
    assert sorted(EXPECTED) == names()


@pytest.mark.parametrize("name", EXPECTED)
def test_keys_and_values_are_those_of_trl(name):
    file = FOLDER / f"{name}.yaml"
    ours = yaml.safe_load(file.read_text())
    theirs_name = {"single_gpu_qlora": "single_gpu", "fsdp2_qlora": "fsdp2"}.get(name, name)
    theirs = yaml.safe_load(files("trl.accelerate_configs").joinpath(f"{theirs_name}.yaml").read_text())
    assert {**theirs, "num_processes": None} == {
        **{key: value for key, value in ours.items() if key != "enable_cpu_affinity" or key in theirs},
        "num_processes": None,
    }
    load_config_from_file(str(file))  # refuses a key that Accelerate does not know
    assert file.read_text().startswith("# ")


def test_the_configurations_are_in_the_wheel():
    wheel = (ROOT / "pyproject.toml").read_text().partition("[tool.hatch.build.targets.wheel]")[2]
    assert wheel.strip().startswith('packages = ["trl_selfdistill"]')
    assert FOLDER.parent.parent == ROOT / "trl_selfdistill"


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory) -> Path:
    """A policy in the widths that the CPU kernel of bitsandbytes can do: multiples of 64."""
    folder = tmp_path_factory.mktemp("wide")
    tokenizer = build_tokenizer()
    build_model(tokenizer, head_dim=64, intermediate_size=256).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def is_missing(name: str) -> bool:
    needs = "deepspeed" if name.startswith("zero") else "bitsandbytes" if "qlora" in name else "torch"
    return importlib.util.find_spec(needs) is None


PARAMS = [
    pytest.param(
        name,
        marks=[
            pytest.mark.slow,
            pytest.mark.apart,
            pytest.mark.skipif(is_missing(name), reason="its package is missing"),
        ],
    )
    for name in EXPECTED
]


@pytest.mark.parametrize("name", PARAMS)
def test_a_configuration_launches_what_it_says(name, wide_dir, tmp_path):
    expected = EXPECTED[name]
    sums().to_json(tmp_path / "sums.jsonl")
    settings = {
        **distill_settings(
            tmp_path / "out", per_device_train_batch_size=4, max_steps=1, bf16=True, optim="adamw_torch"
        ),
        "model_name_or_path": str(wide_dir),
        "dataset_name": str(tmp_path / "sums.jsonl"),
        "reward_funcs": ["helpers.lenient_reward"],
        **expected.settings,
    }
    recipe = tmp_path / "R.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    processes = ["--num_processes", str(expected.processes), *expected.options]
    where = str(ROOT / "tests/scripts")
    run_script(
        *("-c", LAUNCH, "rlrt", "--config", str(recipe), "--accelerate_config", name, *processes),
        PYTHONPATH=paths(where),
    )
    for rank in range(expected.processes):
        assert json.loads((tmp_path / f"out-{rank}.json").read_text()) == {
            "wrapper": expected.wrapper,
            "distributed_type": expected.distributed_type,
            "processes": expected.processes,
            "split_weights": expected.split_weights,
            "mixed_precision": expected.mixed_precision,
            "linear4bit": "qlora" in name,
            "steps": 1,
        }


def paths(*more: str) -> str:
    return ":".join([str(ROOT), str(ROOT / "examples"), str(ROOT / "tests"), *more])
