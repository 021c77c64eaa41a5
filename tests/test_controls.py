"""`trl-selfdistill controls`: which arms there are, that each runs alone, and what the table says."""

import json

import pytest
import test_cli
from test_cli import error_of, recipe

import trl_selfdistill
from trl_selfdistill import OPSAConfig, OPSDConfig
from trl_selfdistill.cli import control_arms, control_run, controls
from trl_selfdistill.cli.arguments import parse, read_command_line
from trl_selfdistill.cli.control_arms import GRPO, METHOD, NO_REFERENCE, NO_TEACHER, WRONG_REFERENCE, adapted, arms_of
from trl_selfdistill.cli.control_table import table
from trl_selfdistill.cli.main import main

here = test_cli.here  # a fixture: the working directory of a user
REWARD = ["--reward_funcs", "accuracy_reward"]
COMMON = [
    *REWARD,
    "--use_cpu",
    "--bf16",
    "false",
    "--report_to",
    "none",
    "--output_dir",
    "out",
    "--model_name_or_path",
    "m",
]
BATCH = ["--num_generations", "4", "--per_device_train_batch_size", "8"]


def arms(command: str, *options: str) -> dict[str, control_arms.Arm]:
    argv = [*COMMON, *BATCH, *options]
    config = getattr(trl_selfdistill, control_arms.ALGORITHMS[command]).config_class
    return {arm.name: arm for arm in arms_of(command, parse(read_command_line(argv, config), config), argv)}


def test_the_arms_of_an_algorithm_with_a_strength():
    found = arms("rlrt", "--teacher_model_kind", "base")
    assert list(found) == [METHOD, NO_REFERENCE, WRONG_REFERENCE, NO_TEACHER, GRPO]
    assert found[METHOD].options == []
    assert found[NO_REFERENCE].options == ["--context", "none"]
    assert found[WRONG_REFERENCE].options == ["--context", "other_gold"]
    assert found[GRPO].options == ["--rlrt_strength", "0", "--row_weight", "none"]
    assert (found[NO_TEACHER].command, found[NO_TEACHER].options, found[NO_TEACHER].left_out) == (
        "opsa",
        ["--row_weight", "none"],
        "",
    )


def test_arms_that_make_no_sense_are_left_out_with_one_line():
    found = arms("opsd")
    assert "u = 0" not in found[NO_REFERENCE].left_out  # its teacher has the base weights
    assert "no strength that could be 0" in found[GRPO].left_out
    # Its student does not think: neither does that of the arm.
    assert found[NO_TEACHER].changes["chat_template_kwargs"] == '{"enable_thinking": false}'
    alone = arms("opsa")
    assert [name for name, arm in alone.items() if not arm.left_out] == [METHOD]
    assert "opsa asks no teacher" in alone[WRONG_REFERENCE].left_out
    assert "no algorithm without a teacher to compare with" in alone[NO_TEACHER].left_out
    live = arms("rlrt")
    assert "u = 0" in live[NO_REFERENCE].left_out and "teacher_model_kind" in live[NO_REFERENCE].left_out
    thinking = arms("rlrt", "--teacher_chat_template_kwargs", '{"enable_thinking": true}')
    assert thinking[NO_REFERENCE].changes == {"context": "none"}
    small = arms("rlrt", "--per_device_train_batch_size", "4")
    assert "one problem per batch" in small[WRONG_REFERENCE].left_out
    assert "recipe's own" in arms("rlrt", "--context", "other_gold")[WRONG_REFERENCE].left_out
    assert all("\n" not in arm.left_out for arm in (*found.values(), *small.values()))


def test_the_arm_without_a_teacher_has_as_many_rollouts_a_prompt_as_the_method():
    """OPSD's default is 1, OPSA's is 8."""
    batch = ["--per_device_train_batch_size", "2"]
    arguments = parse(read_command_line([*COMMON, *batch], OPSDConfig), OPSDConfig)
    arm = control_arms.without_teacher("opsd", arguments)
    assert arm.changes["num_generations"] == "1"
    assert (
        parse(read_command_line([*COMMON, *batch, *arm.options], OPSAConfig), OPSAConfig).training.num_generations == 1
    )


def test_the_arm_without_a_teacher_is_read_before_anything_runs():
    found = arms("rlrt", "--skip_unused_scores", "true")
    assert not found[NO_TEACHER].left_out
    assert adapted({"skip_unused_scores": True}, [], method="rlrt", arm="opsa") == ({}, [])
    assert adapted({"skip_unused_scores": True}, [], method="rlrt", arm="rlrt")[0] == {"skip_unused_scores": True}
    masked = arms("rlrt", "--off_policy_mask_threshold", "0.5")
    assert "off_policy_mask_threshold=0.5" in masked[NO_TEACHER].left_out
    assert not masked[METHOD].left_out


@pytest.mark.parametrize("command", ["rlcsd", "sdpo"])
def test_algorithms_that_put_a_context_in_words_of_their_own_have_the_controls(command):
    found = arms(command)
    assert found[NO_REFERENCE].changes == {"context": "none"}
    assert found[WRONG_REFERENCE].changes == {"context": "other_gold"}


def test_an_algorithm_that_does_not_read_the_context_has_no_references(monkeypatch):
    monkeypatch.setattr(trl_selfdistill.RLCSDTrainer, "reads_context", False)
    found = arms("rlcsd")
    assert all("`context` is not read" in found[name].left_out for name in (NO_REFERENCE, WRONG_REFERENCE))


def test_without_a_reward_there_is_no_grpo_to_compare_with(monkeypatch):
    assert not arms("poweropd")[GRPO].left_out
    assert "no reward" in arms("poweropd", "--reward_weights", "0.0")[GRPO].left_out
    monkeypatch.setattr("test_controls.COMMON", [text for text in COMMON if text not in REWARD])
    assert "no reward" in arms("poweropd")[GRPO].left_out


def test_settings_of_one_algorithm_do_not_reach_another():
    options = ["--rlrt_strength", "0.3", "--learning_rate", "1e-6", "--rlrt-clip=0.2", "--seeds_of", "1", "2"]
    recipe, kept = adapted({"rlrt_clip": 0.2, "max_steps": 2}, options, method="rlrt", arm="antisd")
    assert recipe == {"max_steps": 2}
    assert kept == ["--learning_rate", "1e-6", "--seeds_of", "1", "2"]
    assert adapted({"rlrt_clip": 0.2}, options, method="rlrt", arm="rlrt") == ({"rlrt_clip": 0.2}, options)
    given = {"context": "peer", "teacher_template": "{context}", "privileged_context_column": "answer"}
    more = ["--teacher_model_kind", "base", "--max_steps", "2"]
    without = ({"privileged_context_column": "answer"}, ["--max_steps", "2"])
    assert adapted(given, more, method="rlrt", arm="opsa") == without
    assert adapted(given, more, method="rlrt", arm="rlsd") == (given, more)


def test_the_end_of_a_run_is_its_last_quarter():
    history = [{"loss": 0.0, "reward": i / 8, "self_distill/log_ratio": -float(i)} for i in range(8)]
    history += [{"eval_loss": 1.0, "eval_reward": 9.0}, {"train_loss": 0.0}]
    expected = {"reward": 6.5 / 8, "log_ratio": -6.5, "has_teacher": None, "length": None}
    assert control_run.at_the_end(history) == expected
    assert control_run.at_the_end([]) == dict.fromkeys(expected)
    assert control_run.eval_reward({"eval_reward": 0.5, "eval_reward_std": 9.0, "eval_rewards/f/mean": 9.0}) == 0.5
    assert control_run.eval_reward({"eval_hard_reward": 0.25, "eval_easy_reward": 0.75}) == 0.5


def finished(arm: str, seed: int, reward: float, **other) -> dict:
    result = {"steps": 2, "reward": reward, "eval_before": None, "eval_after": None, "log_ratio": -0.5}
    result |= {"has_teacher": 1.0, "length": 3.0, "seconds": 1.0, **other}
    return {"arm": arm, "seed": seed, "status": "finished", "reason": "", "result": result}


def test_the_table():
    records = [
        {"arm": "grpo", "seed": None, "status": "left out", "reason": "why"},
        finished("method", 0, 0.25),
        finished("method", 1, 0.75),
        {"arm": "method", "seed": 2, "status": "failed", "reason": "exit status 1: boom"},
        finished("no_teacher", 0, 0.5, log_ratio=None, seconds=None),
    ]
    head, method, bare, *remarks = table(records)
    assert head.split()[:4] == ["arm", "seeds", "steps", "reward"]
    assert method.split()[:6] == ["method", "2", "2", "0.500", "±", "0.354"]
    assert bare.split() == ["no_teacher", "1", "2", "0.500", "-", "-", "-", "1.00", "3.0", "-"]
    assert remarks == ["grpo: left out: why", "method, seed 2: failed: exit status 1: boom"]


def test_dry_run_shows_the_arms_and_writes_nothing(here, model_dir, capsys):
    file = recipe(here, model_dir, teacher_model_kind="base")
    assert main(["controls", "rlrt", "--config", file, "--seeds", "0", "1", "--dry-run"]) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(shown) == [METHOD, NO_REFERENCE, WRONG_REFERENCE, NO_TEACHER, GRPO]
    assert shown[WRONG_REFERENCE].endswith("rlrt --context other_gold; seed 0, 1")
    assert not (here / "out").exists()


def test_mistakes(here, model_dir, capsys, monkeypatch):
    file = recipe(here, model_dir)
    assert "controls of what?" in error_of(capsys, "controls", "rltr", "--config", file)
    assert "unknown option '--max_stepz'" in error_of(capsys, "controls", "rlrt", "--config", file, "--max_stepz", "1")
    assert "leave it out" in error_of(capsys, "controls", "rlrt", "--config", file, "--resume_from_checkpoint", "true")
    assert main(["controls", "--help"]) == 0
    assert "wrong_reference" in capsys.readouterr().out
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "start it without torchrun" in error_of(capsys, "controls", "rlrt", "--config", file)


def in_this_process(monkeypatch, *, fails: str = "") -> list[list[str]]:
    """Run the arms without new processes, which spend most of their time on imports. The command lines that ran."""
    ran = []

    class Process:
        def __init__(self, command, **_):
            self.command = command

        def wait(self) -> int:
            ran.append(self.command[3:])
            if fails and fails in self.command[3]:
                return 1
            return control_run.main(self.command[3:])

    monkeypatch.setattr(controls.subprocess, "Popen", Process)
    return ran


@pytest.mark.slow
def test_every_arm_runs_and_a_crash_does_not_lose_the_others(here, model_dir, capsys, monkeypatch):
    more = {"teacher_model_kind": "base", "eval_strategy": "steps", "test_split_size": 0.4}
    file = recipe(here, model_dir, **more, per_device_eval_batch_size=8)
    argv = ["controls", "rlrt", "--config", file]
    ran = in_this_process(monkeypatch, fails=NO_REFERENCE)
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert "no_reference, seed 42: failed: exit status 1" in out
    runs = {run["arm"]: run for run in json.loads((here / "out/controls.json").read_text())["runs"]}
    others = [METHOD, WRONG_REFERENCE, NO_TEACHER, GRPO]
    assert [name for name, run in runs.items() if run["status"] == "finished"] == others
    for run in map(runs.get, others):
        result = run["result"]
        assert result["steps"] == 2 and 0.0 <= result["reward"] <= 1.0 and result["seconds"] > 0
        assert 0.0 <= result["eval_before"] <= 1.0 and 0.0 <= result["eval_after"] <= 1.0
        assert (here / f"out/{run['arm']}/seed-42/model.safetensors").is_file()
    assert runs[WRONG_REFERENCE]["result"]["has_teacher"] == 1.0
    assert runs[NO_TEACHER]["result"]["has_teacher"] is None and runs[NO_TEACHER]["result"]["log_ratio"] is None
    assert runs[WRONG_REFERENCE]["command"].startswith("trl-selfdistill rlrt --config out/wrong_reference/seed-42/")
    # Once more: what is finished is not run again, what failed is.
    ran.clear()
    in_this_process(monkeypatch)
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("finished already") == 4 and "no_reference, seed 42: finished in" in out
    assert "\nno_reference" in out.partition("arm ")[2]
    assert "other settings" in error_of(capsys, *argv, "--max_steps", "1")


@pytest.mark.slow
@pytest.mark.apart
def test_the_arms_run_in_processes_of_their_own(here, model_dir, capsys):
    file = recipe(here, model_dir, reward_funcs=None, num_generations=1)
    assert main(["controls", "opsd", "--config", file, "--seeds", "3"]) == 0
    runs = {run["arm"]: run for run in json.loads((here / "out/controls.json").read_text())["runs"]}
    ran = (METHOD, NO_REFERENCE, WRONG_REFERENCE, NO_TEACHER)
    assert [runs[name]["status"] for name in ran] == ["finished"] * 4
    assert runs[GRPO]["status"] == "left out"
    assert (here / "out/method/seed-3/log.txt").read_text()
    assert runs[METHOD]["result"]["reward"] is None
