"""SIGKILL at any moment, also during the save: the run goes on from its last complete checkpoint and ends the same."""

import json
import random
import shutil
import time

import pytest
from helpers import assert_same_state, run_trainer, start_trainer, wait
from safetensors.torch import load_file
from test_processes import resume_settings

from trl_selfdistill.trainer.checkpoint import last_complete_checkpoint

KILLS = 20
STEPS = 8


@pytest.fixture(scope="module")
def whole(model_dir, tmp_path_factory):
    """The unkilled run, and about how long it takes from its first to its last checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    result = run_trainer(folder / "out", trainer="AntiSDTrainer", model=model_dir, config=config_of(folder / "run"))
    times = [path.stat().st_mtime for path in (folder / "run").glob("checkpoint-*/trainer_state.json")]
    return result, (max(times) - min(times)) * STEPS  # the last two checkpoints are left, one step apart


def config_of(folder):
    overrides = {"max_steps": STEPS, "save_steps": 1, "save_total_limit": 2, "teacher_model_kind": "ema"}
    return resume_settings(folder, "AntiSDTrainer", **overrides)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_run_resumes_and_ends_like_an_unkilled_one(seed, whole, model_dir, tmp_path):
    result, seconds = whole
    job = {"trainer": "AntiSDTrainer", "model": str(model_dir), "config": config_of(tmp_path / "run")}
    (tmp_path / "job.json").write_text(json.dumps({**job, "out": str(tmp_path / "out")}))
    (process,) = start_trainer(tmp_path / "job.json")
    while not list(tmp_path.glob("run/checkpoint-*")):  # the first save has begun
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0.0, 0.7 * seconds))
    process.kill()
    process.join()
    left = sorted(path.name for path in tmp_path.glob("run/checkpoint-*"))
    last = last_complete_checkpoint(tmp_path / "run")
    print(f"\nkilled with {left}, goes on from {last and last.name}")
    (tmp_path / "job.json").write_text(json.dumps({**job, "out": str(tmp_path / "out"), "resume": last is not None}))
    wait(start_trainer(tmp_path / "job.json"))
    assert_same_state(result.weights, load_file(tmp_path / "out/weights.safetensors"))
    assert_same_state(result.shadow, load_file(tmp_path / "out/shadow.safetensors"))
    assert result.state == json.loads((tmp_path / "out/state.json").read_text())
    assert len(list(tmp_path.glob("run/checkpoint-*"))) <= 3


@pytest.mark.slow
def test_a_process_that_fails_says_why(model_dir, tmp_path):
    job = {"trainer": "NoSuchTrainer", "model": str(model_dir), "config": {}, "out": str(tmp_path / "out")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(AssertionError, match=r"ended with \[1\](.|\n)*NoSuchTrainer"):
        wait(start_trainer(tmp_path / "job.json"))


def checkpoint(folder, step: int, *, state: str | None = "{}"):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 9)
    complete = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, state=None)
    checkpoint(tmp_path, 100, state='{"global_step": 1')
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == complete
    shutil.rmtree(complete)
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-9"
