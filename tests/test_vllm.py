"""A real vLLM samples the rollouts, on a CPU: as a server on loopback, and in the trainer's process.

`make test-vllm` runs this in an environment of its own. Weights reach vLLM by `vllm_shims.py`: TRL's ways need a GPU.
Runs are processes of their own (`scripts/run_vllm.py`), since vLLM keeps a process for itself. Two for each mode: one
that is killed in its last job, and one that goes on from there.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from helpers import HINT_TEMPLATE, ROOT, assert_same_state, settings
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
]
SCRIPT = ROOT / "tests/scripts/run_vllm.py"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a colocated engine is in the trainer's own process
}
STEPS = 30
SAVED, KILLED, END = 8, 10, 16
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 128,
    "num_generations": 8,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "teacher_template": HINT_TEMPLATE,
    "use_vllm": True,
    "vllm_max_model_length": 128,
    "vllm_importance_sampling_correction": True,
    "sampler_mismatch": "stop",
}
RESUMED = {"max_steps": END, "save_strategy": "steps", "save_steps": SAVED, "teacher_model_kind": "ema"}
JOBS: dict[str, dict[str, Any]] = {
    "rlrt": {"trainer": "RLRTTrainer", "config": {"max_steps": STEPS}},
    "stale": {"trainer": "RLRTTrainer", "syncs": 1, "config": {"max_steps": STEPS}},
    "lora": {"trainer": "RLRTTrainer", "lora": True, "config": {"max_steps": 3, "learning_rate": 1e-2}},
    "opsd": {"trainer": "OPSDTrainer", "config": {"max_steps": 1, "num_generations": 1}},
    "resumed": {"trainer": "AntiSDTrainer", "kill": KILLED, "config": {**RESUMED, "antisd_warmup": 2}},
}


def environment() -> dict[str, str]:
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "examples", "tests"))
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": paths}


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """A vLLM server of `model` on loopback; its address. `vllm serve` needs a package called vllm."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "128"]
    command += ["--enforce-eager", "--weight-transfer-config", '{"backend":"nccl"}']
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    serving = {**environment(), "VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=serving, stdout=file, stderr=file, start_new_session=True)
    try:
        until_healthy(server, url, log)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def until_healthy(server: subprocess.Popen, url: str, log: Path, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, f"the vLLM server ended:\n{log.read_text()[-4000:]}"
        try:
            if requests.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass  # not up yet
        time.sleep(0.5)
    raise AssertionError(f"no vLLM server after {seconds} s:\n{log.read_text()[-4000:]}")


def train(folder: Path, model: Path, sampler: dict[str, Any], names: list[str], **more: Any) -> int:
    """Run jobs one after the other in a new process; its exit status."""
    files = []
    for name in names:
        out, job = folder / name, JOBS[name]
        out.mkdir(exist_ok=True)
        config = settings(out / "run", **{**COMMON, **sampler, **job["config"]})
        files.append(out / ("resume.json" if more else "job.json"))
        files[-1].write_text(json.dumps({**job, "model": str(model), "config": config, **more}))
    with (folder / f"{names[0]}.log").open("w") as log:
        command = [sys.executable, str(SCRIPT), *map(str, files)]
        return subprocess.run(command, env=environment(), stdout=log, stderr=log, cwd=folder, timeout=1800).returncode


def result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "result.json").read_text())


def means(log: list[dict[str, float]], parts: int = 4) -> tuple[float, float]:
    """Mean reward of the first and of the last part of a run."""
    rewards = [entry["reward"] for entry in log]
    size = len(rewards) // parts
    return sum(rewards[:size]) / size, sum(rewards[-size:]) / size


@pytest.fixture(scope="module", params=["colocate", "server"])
def runs(request, tiny_dir, tmp_path_factory) -> Iterator[Path]:
    """The folder of all runs in one mode, done."""
    folder = tmp_path_factory.mktemp(request.param)
    sampler = {"vllm_mode": request.param}
    if request.param == "colocate":
        train_all(folder, tiny_dir, sampler)
        yield folder
        return
    with vllm_server(tiny_dir, folder / "server.log") as url:
        train_all(folder, tiny_dir, {**sampler, "vllm_server_base_url": url})
        yield folder
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/health", timeout=5)


def train_all(folder: Path, model: Path, sampler: dict[str, Any]) -> None:
    status = train(folder, model, sampler, list(JOBS))
    assert status == -signal.SIGKILL, (folder / "rlrt.log").read_text()[-4000:]
    status = train(folder, model, sampler, ["resumed"], resume=True, kill=-1)
    assert status == 0, (folder / "resumed.log").read_text()[-4000:]


def test_rewards_rise(runs):
    found = result(runs, "rlrt")
    first, last = means(found["log"])
    print(f"\n{runs.name}: reward {first:.3f} -> {last:.3f}, right answers {found['accuracy']:.3f}")
    assert last > first + 0.2
    assert found["accuracy"] > 0.4  # by transformers' own generation; 0.15 to 0.35 before


@pytest.mark.parametrize("name", [name for name in JOBS if name != "stale"])
def test_the_rollouts_are_the_policys_and_the_check_is_silent(runs, name):
    """Above 0.1 nats `sampler_mismatch="stop"` would have ended the run."""
    found = result(runs, name)
    assert found["stopped"] is None
    assert found["step"] == JOBS[name]["config"]["max_steps"]
    for key in ("sampling/sampling_logp_difference/mean", "self_distill/sampler_difference"):
        distances = [entry[key] for entry in found["log"]]
        print(f"\n{runs.name} {name}: {key} at most {max(distances):.2e}")
        assert max(distances) < (1e-4 if runs.name.startswith("server") else 0.01)  # float32; bfloat16
    assert all(abs(entry["sampling/importance_sampling_ratio/mean"] - 1) < 0.05 for entry in found["log"])


def test_stale_weights_are_caught(runs):
    """Steps before the stop are in the log: the distance grows from one to the next until it is too large."""
    found = result(runs, "stale")
    distances = [entry["self_distill/sampler_difference"] for entry in found["log"]]
    print(f"\n{runs.name}: stopped at step {found['step']}, before it {[round(d, 3) for d in distances]}")
    assert "The rollouts do not come from the policy that is trained" in found["stopped"]
    assert "check that its weights are updated" in found["stopped"]
    assert 1 <= found["step"] < 10 < result(runs, "rlrt")["step"]  # the same run with its weights sent


@pytest.mark.parametrize("name", [name for name in JOBS if name != "lora"])
def test_both_scores_come_from_the_training_forward(runs, name):
    """They are those of a plain forward. vLLM's own numbers are other numbers: rounded, or of old weights."""
    scores = result(runs, name)["scores"]
    assert scores
    worst = {key: max(batch[key] for batch in scores) for key in ("student", "teacher", "sampler")}
    print(f"\n{runs.name} {name}: {worst}")
    assert max(worst["student"], worst["teacher"]) < 1e-4
    if runs.name.startswith("colocate") or name == "stale":
        assert worst["sampler"] > 1e-2


def test_a_killed_run_goes_on(runs):
    """Its sampler is not reproducible, so it does not end bit for bit as an unbroken one. All else is restored."""
    folder, found = runs / "resumed", result(runs, "resumed")
    checkpoint = folder / f"run/checkpoint-{SAVED}"
    start = json.loads((folder / "start.json").read_text())
    saved = json.loads((checkpoint / "selfdistill_state.json").read_text())
    assert (start["step"], start["optimizer_steps"]) == (SAVED, [SAVED])
    assert start["values"] and start["values"].items() <= saved.items()
    teacher, policy = load_file(folder / "start-teacher.safetensors"), load_file(folder / "start.safetensors")
    assert_same_state(teacher, load_file(checkpoint / "selfdistill_teacher.safetensors"))
    assert_same_state(policy, {k: v for k, v in load_file(checkpoint / "model.safetensors").items() if k in policy})
    rewards = [entry["reward"] for entry in found["log"]]
    before, after = sum(rewards[SAVED - 5 : SAVED]) / 5, sum(rewards[SAVED:]) / (END - SAVED)
    print(f"\n{runs.name}: reward {rewards[0]:.3f}, {before:.3f} before the kill, {after:.3f} after it")
    assert len(rewards) == END
    assert after > before - 0.1
    assert found["log"][SAVED]["self_distill/sampler_difference"] < 0.01  # the sampler has the restored weights
