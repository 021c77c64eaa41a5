"""The command line: what it answers to mistakes, how it reads data, and that it trains, stops and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import trl
from helpers import ROOT, run_script
from tiny_policy import HINT_TEMPLATE
from transformers import AutoTokenizer
from trl import DatasetMixtureConfig

import trl_selfdistill
from trl_selfdistill.cli import configs, env
from trl_selfdistill.cli import launch as launching
from trl_selfdistill.cli.arguments import RunArguments, accelerate_parser
from trl_selfdistill.cli.commands import ALGORITHMS, OPTIONS, SUMMARIES
from trl_selfdistill.cli.data import load_data
from trl_selfdistill.cli.errors import UserError, guarded
from trl_selfdistill.cli.interrupt import StopOnInterrupt
from trl_selfdistill.cli.launch import exit_status
from trl_selfdistill.cli.main import main
from trl_selfdistill.cli.memory import estimate_memory
from trl_selfdistill.cli.rewards import load_reward
from trl_selfdistill.cli.train import how_to_go_on, run

ROWS = [{"problem": f"{a}+{b}=", "answer": a + b, "level": a} for a in range(5) for b in range(4)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory of a user: some problems, and a module of his own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "sums.csv").write_text("problem,answer\n1+1=,2\n1+2=,3\n")
    (tmp_path / "mine.py").write_text(
        "def even(completions, **kwargs):\n"
        "    return [float(len(c[0]['content']) % 2 == 0) for c in completions]\n"
        "def row(example):\n"
        "    return {'prompt': example['problem'], 'solution': str(example['answer'])}\n"
        "def hint(rollout):\n"
        "    return 'a hint of my own'\n"
        "number = 3\n"
    )
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there\n")
    yield tmp_path
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


def recipe(folder, model_dir, **changes):
    """A recipe file of a short run on `sums.jsonl`."""
    settings = {
        "model_name_or_path": str(model_dir),
        "dataset_name": "sums.jsonl",
        "prompt_column": "problem",
        "solution_column": "answer",
        "reward_funcs": ["mine.even"],
        "output_dir": "out",
        "teacher_template": HINT_TEMPLATE,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        **changes,
    }
    file = folder / "R.yaml"
    file.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))  # JSON is YAML
    return str(file.name)


def error_of(capsys, *argv) -> str:
    """What is answered to a mistake: exit status 2, one line."""
    assert main(list(argv)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("trl-selfdistill: error: ")
    return error.removeprefix("trl-selfdistill: error: ")


# Help, tools ----------------------------------------------------------------------------------------------------------


def test_every_exported_algorithm_has_a_command_and_a_line_of_help(capsys):
    trainers = [name for name in trl_selfdistill.__all__ if name.endswith("Trainer")]
    assert sorted(ALGORITHMS.values()) == sorted(trainers)
    assert {name: getattr(trl_selfdistill, t)._name.lower() for name, t in ALGORITHMS.items()} == {
        name: name for name in ALGORITHMS
    }
    assert SUMMARIES.keys() == ALGORITHMS.keys()
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in ALGORITHMS)


def test_help_needs_no_torch():
    code = (
        "import sys; from trl_selfdistill.cli.main import main; main(['--help']); main(['rlrt', '--help']); "
        "main(['configs']); heavy = {'torch', 'trl', 'transformers', 'datasets', 'accelerate'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    assert "--dry-run" in run_script("-c", code)


def test_the_options_that_help_shows_are_there():
    parser_options = "\n".join(launching.all_options(trl_selfdistill.RLRTConfig))
    own = ("--config ", "--accelerate_config", "--dry-run", "--help_all", "--num_processes")
    shown = [word for word in OPTIONS.replace(",", " ").split() if word.startswith("--")]
    assert len(shown) > 15
    for option in shown:
        assert f"{option} (default" in parser_options or f"{option} ".startswith(own), option


def test_help_all_has_every_option_once(capsys):
    assert main(["rlrt", "--help_all"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    names = [line.split()[0] for line in lines]
    assert len(names) == len(set(names)) > 200
    assert names[:2] == ["--rlrt_strength", "--rlrt_clip"]
    assert {"--prompt_column", "--lora_r", "--teacher_update_rate", "--num_generations", "--learning_rate"} <= set(
        names
    )


def test_configs_by_name_and_by_path(capsys, tmp_path):
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == configs.names()
    assert main(["configs", "fsdp2"]) == 0
    assert capsys.readouterr().out.strip() == str(configs.FOLDER / "fsdp2.yaml")
    assert "'fdsp2' is neither a file nor one of" in error_of(capsys, "configs", "fdsp2")
    assert "usage: trl-selfdistill configs [NAME]" in error_of(capsys, "configs", "a", "b")
    own = tmp_path / "mine.yaml"
    own.write_text("num_processes: 2\n")
    assert configs.config_path(str(own)) == own


def test_env_names_versions_and_devices(capsys):
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert f"- trl: {trl.__version__}" in shown
    assert f"- trl-selfdistill: {trl_selfdistill.__version__}" in shown
    assert "- devices: " in shown
    assert env.installed("a-package-that-is-not-there") == "not installed"
    assert error_of(capsys, "env", "x") == "usage: trl-selfdistill env"


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == trl_selfdistill.__version__


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_an_unknown_command(capsys):
    assert error_of(capsys, "rlrtt").startswith("unknown command 'rlrtt'. Did you mean 'rlrt'? There are: ")


def test_misspelt_keys_are_answered_with_the_nearest_name(capsys, here, model_dir):
    file = recipe(here, model_dir, rlrt_strenght=0.5)
    assert error_of(capsys, "rlrt", "--config", file) == (
        "unknown key 'rlrt_strenght' in R.yaml. Did you mean 'rlrt_strength'?"
    )
    file = recipe(here, model_dir)
    for option in (["--rlrt_strenght", "0.5"], ["--rlrt-strenght", "0.5"], ["--rlrt_strenght=0.5"]):
        name = option[0].partition("=")[0]
        answer = f"unknown option '{name}'. Did you mean '--rlrt_strength'?"
        assert error_of(capsys, "rlrt", "--config", file, *option) == answer
    assert "Did you mean '--num_processes'?" in error_of(capsys, "rlrt", "--num_proceses", "2")
    assert error_of(capsys, "rlrt", "problems.jsonl").startswith("unexpected argument 'problems.jsonl'")
    file = recipe(here, model_dir, dataset_name=None, datasets=[{"pth": "sums.jsonl"}])
    assert error_of(capsys, "rlrt", "--config", file) == (
        "unknown key 'pth' under 'datasets' in R.yaml. Did you mean 'path'?"
    )


MISTAKES = {
    "no value": (["--max_steps", "many"], "argument --max_steps/--max-steps: invalid int value: 'many'"),
    "value": (["--rlrt_clip", "-1"], "rlrt_clip=-1.0"),
    "builder": (["--context", "peeer"], "Did you mean 'peer'?"),
    "file": (["--dataset_name", "nothing.jsonl"], "there is no file 'nothing.jsonl'."),
    "column": (
        ["--prompt_column", "problems"],
        "--prompt_column 'problems': the data has no such column. Did you mean 'problem'? "
        "It has: problem, answer, level.",
    ),
    "solution": (["--solution_column", "gold"], "--solution_column 'gold': the data has no such column. It has: "),
    "row function": (["--row_function", "mine.row"], "leave out --prompt_column"),
    "split": (
        ["--dataset_train_split", "all"],
        "the data has no split 'all'. It has: train. Set --dataset_train_split.",
    ),
    "test split": (["--eval_strategy", "steps"], "--test_split_size 0.1 makes one of the training data."),
    "stream split": (
        ["--test_split_size", "0.5", "--dataset_streaming", "true"],
        "test_split_size cannot split a stream. Leave out dataset_streaming.",
    ),
    "streaming": (["--streaming", "true"], "streaming is for `datasets:`. Use dataset_streaming with dataset_name."),
    "reward": (["--reward_funcs", "acuracy_reward"], "Did you mean 'accuracy_reward'?"),
    "reward module": (["--reward_funcs", "mein.even"], "there is no module 'mein' here or among the packages."),
    "reward attribute": (["--reward_funcs", "mine.evn"], "the module 'mine' has no 'evn'. Did you mean 'even'?"),
    "reward kind": (["--reward_funcs", "mine.number"], "--reward_funcs 'mine.number' is a int, not a function."),
    "model": (["--model_name_or_path", "not/there"], "--model_name_or_path 'not/there' cannot be loaded: "),
    "config": (["--accelerate_config", "fdsp2"], "is neither a file nor one of"),
    "cpu": (["--cpu", "--num_processes", "2"], "Use torchrun: torchrun --nproc_per_node 2 -m trl_selfdistill rlrt ..."),
    "recipe": (["--config", "nothing.yaml"], "--config nothing.yaml: No such file or directory."),
    "rows": (["--per_device_train_batch_size", "400"], "train_dataset has 20 rows, but one generation batch needs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_one_line(name, capsys, here, model_dir):
    options, answer = MISTAKES[name]
    config = [] if "--config" in options else ["--config", recipe(here, model_dir)]
    assert answer in error_of(capsys, "rlrt", *config, *options)


def test_files_that_are_no_recipes(capsys, here):
    (here / "list.yaml").write_text("- a\n")
    assert error_of(capsys, "rlrt", "--config", "list.yaml").startswith("list.yaml must hold lines such as")
    (here / "broken.yaml").write_text("a: [\n")
    assert error_of(capsys, "rlrt", "--config", "broken.yaml").startswith("broken.yaml is no YAML: ")


def test_what_is_missing(capsys, here, model_dir):
    file = recipe(here, model_dir, model_name_or_path=None)
    assert error_of(capsys, "rlrt", "--config", file).startswith("--model_name_or_path is missing")
    file = recipe(here, model_dir, dataset_name=None)
    assert "either as --dataset_name or as `datasets:`" in error_of(capsys, "rlrt", "--config", file)
    file = recipe(here, model_dir, datasets=[{"path": "sums.jsonl"}])
    assert "either as --dataset_name or as `datasets:`" in error_of(capsys, "rlrt", "--config", file)
    file = recipe(here, model_dir, prompt_column=None)
    assert error_of(capsys, "rlrt", "--config", file) == (
        "the data has no column 'prompt'. It has: problem, answer, level, solution. Name the one with the problem's "
        "text: --prompt_column COLUMN."
    )


def test_an_import_that_fails_inside_a_module_keeps_its_reason(here):
    sys.path.insert(0, str(here))
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_reward("broken.reward")


def test_other_errors_keep_their_traceback_and_ctrl_c_has_its_status(capsys, monkeypatch):
    def fail():
        raise RuntimeError("not the user's")

    with pytest.raises(RuntimeError):
        guarded(fail)

    def stop():
        raise KeyboardInterrupt

    assert guarded(stop) == 130
    assert "is not saved" in capsys.readouterr().err

    def mistake():
        raise UserError("two\nlines")

    monkeypatch.setenv("RANK", "1")
    assert guarded(mistake) == 2
    assert capsys.readouterr().err == "trl-selfdistill (process 1): error: two lines\n"


# Data and rewards -----------------------------------------------------------------------------------------------------


def data(evaluates=False, mixture=None, **settings):
    return load_data(RunArguments(**settings), mixture or DatasetMixtureConfig(), evaluates=evaluates, seed=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_become_prompt_and_solution(here, streaming):
    train, evaluation = data(
        dataset_name="sums.jsonl",
        prompt_column="problem",
        solution_column="answer",
        system_prompt="Add.",
        dataset_streaming=streaming,
    )
    row = next(iter(train))
    assert row["prompt"] == [{"role": "system", "content": "Add."}, {"role": "user", "content": "0+0="}]
    assert row["solution"] == "0"
    assert (row["answer"], row["level"]) == (0, 0), "a reward function may read the other columns"
    assert evaluation is None


def test_a_column_is_made_a_conversation_in_place(here):
    (here / "p.jsonl").write_text('{"prompt": "1+1="}\n')
    assert data(dataset_name="p.jsonl")[0][0]["prompt"] == "1+1="
    conversation = [{"role": "user", "content": "1+1="}]
    assert data(dataset_name="p.jsonl", prompt_column="prompt")[0][0]["prompt"] == conversation
    system = {"role": "system", "content": "Add."}
    (here / "c.jsonl").write_text(json.dumps({"prompt": conversation}) + "\n")
    assert data(dataset_name="c.jsonl", system_prompt="Add.")[0][0]["prompt"] == [system, *conversation]
    (here / "s.jsonl").write_text(json.dumps({"prompt": [system, *conversation]}) + "\n")
    with pytest.raises(UserError, match="have a system message already"):
        data(dataset_name="s.jsonl", system_prompt="Subtract.")


def test_a_row_function_makes_the_row(here):
    sys.path.insert(0, str(here))
    train, _ = data(dataset_name="sums.jsonl", row_function="mine.row")
    assert (train[5]["prompt"], train[5]["solution"], train[5]["level"]) == ("1+1=", "2", 1)


def test_a_mixture_of_files_and_a_test_split(here):
    (here / "more.jsonl").write_text('{"problem": "1+1=", "answer": 2}\n{"problem": "1+2=", "answer": 3}\n')
    mixture = DatasetMixtureConfig(
        datasets=[{"path": "sums.jsonl", "columns": ["problem", "answer"]}, {"path": "more.jsonl"}]
    )
    train, _ = data(mixture=mixture, prompt_column="problem", solution_column="answer")
    assert len(train) == len(ROWS) + 2
    assert train[len(ROWS)]["prompt"] == [{"role": "user", "content": "1+1="}]
    assert data(dataset_name="sums.csv", prompt_column="problem", solution_column="answer")[0]["solution"] == ["2", "3"]
    parts = [
        data(
            True,
            DatasetMixtureConfig(test_split_size=0.25),
            dataset_name="sums.jsonl",
            prompt_column="problem",
        )
        for _ in range(2)
    ]
    assert [(len(train), len(test)) for train, test in parts] == [(15, 5)] * 2
    assert parts[0][1].to_list() == parts[1][1].to_list(), "every process must split alike"


def test_rewards_by_name(here):
    assert load_reward("accuracy_reward").__name__ == "accuracy_reward"
    punish = load_reward("get_soft_overlong_punishment", 10)
    assert punish(completion_ids=[[0] * 8, [0] * 9, [0] * 10, [0] * 11]) == [0.0, -0.5, -1.0, -1.0]


# Memory ---------------------------------------------------------------------------------------------------------------


def test_the_estimate_of_memory():
    full = estimate_memory(
        weight_bytes=4e9, trainable=10**9, dtype_bytes=4, optimizer="adamw_torch_fused", vocab=1000, head_rows=256
    )
    assert (full.weights, full.gradients, full.optimizer, full.head) == (4e9, 4e9, 8e9, 2.56e6)
    assert full.total == 16e9 + 2.56e6
    shared = {
        "weight_bytes": 4e9,
        "trainable": 10**9,
        "dtype_bytes": 2,
        "vocab": 9,
        "head_rows": 9,
        "teacher_bytes": 1e9,
    }
    eight = estimate_memory(**shared, optimizer="paged_adamw_8bit", weight_shards=2, state_shards=4)
    assert (eight.weights, eight.gradients, eight.optimizer, eight.teacher) == (2e9, 0.5e9, 0.5e9, 0.5e9)
    assert estimate_memory(**shared, optimizer="sgd").optimizer == 0
    with pytest.raises(ValueError, match=r"optimizer='apollo'.*not known"):
        estimate_memory(**shared, optimizer="apollo")


# Launching ------------------------------------------------------------------------------------------------------------


def test_launch_options_go_to_accelerate(here, model_dir, monkeypatch):
    started, before = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(launching, "launch_command", started.append)
    for variable in ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(variable, raising=False)
    argv = ["--config", recipe(here, model_dir), "--accelerate_config", "fsdp2", "--num_processes", "2", "--seed", "3"]
    assert main(["rlrt", *argv]) == 0
    (args,) = started
    assert (args.config_file, args.num_processes) == (str(configs.FOLDER / "fsdp2.yaml"), 2)
    assert (args.module, args.training_script) == (True, "trl_selfdistill.cli.train")
    assert args.training_script_args == ["rlrt", *argv]
    assert signal.getsignal(signal.SIGINT) is before  # which is "ignore" for a job in the background
    recipe(here, model_dir, accelerate_config="zero2", num_processes=3)
    assert main(["rlrt", "--config", "R.yaml"]) == 0
    assert (started[1].config_file, started[1].num_processes) == (str(configs.FOLDER / "zero2.yaml"), 3)


def test_a_failed_process_gives_its_exit_status(here, model_dir, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)

    def failing(args):
        raise subprocess.CalledProcessError(130, "x")

    monkeypatch.setattr(launching, "launch_command", failing)
    assert main(["rlrt", "--config", recipe(here, model_dir), "--num_processes", "1"]) == 130
    assert (exit_status(2), exit_status(-9)) == (2, 137)


def test_a_launched_process_launches_no_other(capsys, here, model_dir, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    answer = error_of(capsys, "rlrt", "--config", recipe(here, model_dir), "--num_processes", "2")
    assert answer.startswith("this process was launched already")


def test_a_script_is_launched_by_accelerate(capsys):
    with pytest.raises(SystemExit) as end:
        run(trl_selfdistill.RLRTTrainer, ["--num_processes", "2"])
    assert end.value.code == 2
    assert "accelerate launch --num_processes ... script.py" in capsys.readouterr().err


def test_fsdp_that_became_something_else_is_refused(capsys, here, model_dir, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(launching, "is_launched", lambda: True)
    answer = error_of(capsys, "rlrt", "--config", recipe(here, model_dir))
    assert "asks for FSDP, but this run is" in answer


def test_accelerate_still_has_the_options_that_are_used():
    args = accelerate_parser().parse_args(["--config_file", "x", "--num_processes", "2", "--module", "y", "--z"])
    assert args.training_script_args == ["--z"]


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_run_from_a_recipe_and_its_dry_run(capsys, here, model_dir):
    file = recipe(here, model_dir, system_prompt="Add.", context="mine.hint")
    assert main(["rlrt", "--config", file, "--dry-run", "--max_steps", "-1", "--teacher_model_kind", "ema"]) == 0
    shown = capsys.readouterr().out
    other, rest = shown.split("== Settings at their defaults")
    assert "\nsystem_prompt: Add.\n" in other
    assert "rlrt_clip" not in other
    assert "rlrt_clip=1.0" in rest
    assert "training rows: 20\noptimiser steps: 30\n" in rest
    assert "2 prompts x 4 = 8, used for 1 optimiser steps" in rest
    assert "<|system|>Add.<|end|><|user|>[a hint of my own]0+0=<|end|><|assistant|>" in rest
    assert "\nteacher " in rest
    assert not list(here.glob("out/*"))
    assert main(["rlrt", "--config", file, "--max_steps", "1"]) == 0
    assert "step 1/1" in capsys.readouterr().out
    assert (here / "out/model.safetensors").is_file()


def test_the_dry_run_of_an_algorithm_without_a_teacher(capsys, here, model_dir):
    assert main(["opsa", "--config", recipe(here, model_dir, teacher_template=None), "--dry-run"]) == 0
    assert "none: OPSATrainer asks no teacher" in capsys.readouterr().out
    error = error_of(capsys, "opsa", "--config", recipe(here, model_dir), "--context", "gold")
    assert "context='gold', teacher_template=" in error and "is of an algorithm that asks none" in error


def test_the_dry_run_shows_placeholders_for_rollouts(capsys, here, model_dir):
    assert main(["antisd", "--config", recipe(here, model_dir, context="peer"), "--dry-run"]) == 0
    assert "[(a rollout of the policy will stand here)]0+0=" in capsys.readouterr().out


class InterruptAt:
    """A reward function that sends Ctrl-C to this process when it is called for the `at`-th time."""

    __name__ = "interrupt"

    def __init__(self, at):
        self.calls, self.at = 0, at

    def __call__(self, completions, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return [float(len(c[0]["content"]) % 2 == 0) for c in completions]


def test_ctrl_c_saves_and_the_run_goes_on_as_if_nothing_was(capsys, here, model_dir):
    before = signal.getsignal(signal.SIGINT)
    settings = {"max_steps": 4, "steps_per_generation": 2, "per_device_train_batch_size": 4}
    file = recipe(here, model_dir, **settings)
    assert main(["rlrt", "--config", file, "--output_dir", "whole"]) == 0
    whole = capsys.readouterr().out
    sys.modules["mine"].even = InterruptAt(1)
    assert main(["rlrt", "--config", file]) == 130
    shown = capsys.readouterr()
    assert "Stopped after step 2; saved in out/checkpoint-2. To go on: the same command with --resume_from" in shown.out
    assert [p.name for p in here.glob("out/checkpoint-*")] == ["checkpoint-2"]
    assert not (here / "out/model.safetensors").exists()
    assert main(["rlrt", "--config", file, "--resume_from_checkpoint", "true"]) == 0
    resumed = capsys.readouterr().out
    weights = [(here / folder / "model.safetensors").read_bytes() for folder in ("whole", "out")]
    assert weights[0] == weights[1]
    assert "step 1/4" in whole
    assert "step 1/4" not in resumed, "it started again from the beginning"
    assert "step 3/4" in resumed
    assert signal.getsignal(signal.SIGINT) is before  # which is "ignore" for a job in the background


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    clock = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stop = StopOnInterrupt()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the launcher's, of the same press
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_line_on_how_to_go_on():
    args = SimpleNamespace(output_dir="o", save_only_model=True)
    assert how_to_go_on(args, 3) == (
        "Stopped after step 3; saved in o/checkpoint-3. It holds the weights alone (save_only_model): "
        "a new run may start from them."
    )


@pytest.mark.slow
def test_the_module_runs_in_two_processes_and_stops_on_ctrl_c(here, model_dir):
    """torchrun, since Accelerate's launcher starts one process on a CPU."""
    recipe(here, model_dir, max_steps=400, per_device_train_batch_size=4)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "trl_selfdistill"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
    process = subprocess.Popen(
        [sys.executable, *command, "rlrt", "--config", "R.yaml"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step   1/400"):
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            assert len(children) == 2
            os.kill(int(children[1]), signal.SIGINT)  # one process alone: the others learn of it
    text = "".join(lines)
    assert process.wait(timeout=600) != 0
    assert "To go on: the same command with --resume_from_checkpoint true" in text, text[-3000:]
    assert "exitcode  : 130" in text
    assert len(list(here.glob("out/checkpoint-*/trainer_state.json"))) == 1
    assert AutoTokenizer.from_pretrained(next(here.glob("out/checkpoint-*"))).eos_token == "<|end|>"
