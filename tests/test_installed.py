"""A user who has the package, a recipe and no clone: SmolLM2 from its recipe, in an empty folder, killed, resumed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import ROOT
from test_recipes import HAS_SMOLLM2, smollm2_folder  # noqa: F401 (a fixture)

STEPS = 4
SIZES = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "eval_strategy": "no",
    "eval_on_start": "false",
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.fixture
def folder(smollm2_folder, tmp_path):  # noqa: F811
    """A folder with the recipe and what it names, and no file of the repository beside them."""
    shutil.copy(ROOT / "recipes/smollm2/rlrt.yaml", tmp_path)
    (tmp_path / "outputs").symlink_to(smollm2_folder / "outputs")
    return tmp_path


def start(folder: Path, processes: int, output: str, *more: str) -> subprocess.Popen[str]:
    flags = [text for name, value in SIZES.items() for text in (f"--{name}", str(value))]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "trl_selfdistill", "rlrt"]
    command += ["--config", "rlrt.yaml", "--output_dir", output, *flags, *more]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / f"{output}.log").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, text=True)


def finish(folder: Path, *arguments: Any) -> None:
    process = start(folder, *arguments)
    assert process.wait(timeout=900) == 0, (folder / f"{arguments[1]}.log").read_text()[-3000:]


def kill_after(process: subprocess.Popen[str], checkpoint: Path) -> None:
    """SIGKILL to the launcher and everything that it started, once the checkpoint is there."""
    end = time.monotonic() + 600
    while not (checkpoint / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < end, "the run ended before its checkpoint"
        time.sleep(0.02)
    own = psutil.Process(process.pid)
    for victim in [*own.children(recursive=True), own]:
        victim.kill()
    process.wait()


def steps(folder: Path, output: str) -> list[dict[str, float]]:
    """What was logged of each step, without times."""
    state = json.loads((folder / output / f"checkpoint-{STEPS}/trainer_state.json").read_text())
    return [{name: value for name, value in entry.items() if name != "step_time"} for entry in state["log_history"]]


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.skipif(not HAS_SMOLLM2, reason="the weights are not installed")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_as_the_one_that_was_not(processes, folder):
    finish(folder, processes, "whole")
    kill_after(start(folder, processes, "killed"), folder / "killed/checkpoint-2")
    assert not (folder / f"killed/checkpoint-{STEPS}").exists(), "it was killed too late"
    finish(folder, processes, "killed", "--resume_from_checkpoint", "true")
    whole, resumed = steps(folder, "whole"), steps(folder, "killed")
    assert len(whole) == STEPS
    assert all(entry["grad_norm"] > 0 for entry in whole)
    assert whole == resumed
    said = (folder / "killed.log").read_text()
    assert said.count("step 1/4") == 1, "it started again from the beginning"
