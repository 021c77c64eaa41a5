"""What several test files need. Fixtures are in conftest.py."""

import dataclasses
import faulthandler
import functools
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_policy import HINT_TEMPLATE, exact_reward, sums

ROOT = Path(__file__).parent.parent


def settings(output_dir: Path, **overrides: Any) -> dict[str, Any]:
    """Arguments of a short, quiet, deterministic CPU run on one-digit sums: 2 prompts x 4 rollouts a step."""
    return {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **overrides,
    }


def distill_settings(output_dir: Path, **overrides: Any) -> dict[str, Any]:
    return settings(output_dir, **{"teacher_template": HINT_TEMPLATE, **overrides})


def lenient_reward(completions: list, **kwargs: Any) -> list[float]:
    """1.0 for an even number of characters: a model that knows no sums gets it right half the time."""
    return [float(len(c[0]["content"] if isinstance(c, list) else c) % 2 == 0) for c in completions]


def build(trainer_class: type, config: Any, model: Any, tokenizer: Any, **kwargs: Any) -> Any:
    arguments = {"reward_funcs": lenient_reward, "train_dataset": sums(), "processing_class": tokenizer, **kwargs}
    return trainer_class(model=model, args=config, **arguments)


def step_logs(trainer: Any) -> list[dict[str, float]]:
    """The log lines of training steps, without times."""
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{k: v for k, v in entry.items() if k != "step_time"} for entry in logs]


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{len(different)} tensors differ, the first is {different[0]}"


def run_script(*arguments: str, processes: int = 1, timeout: int = 900, **environment: str) -> str:
    """Run a Python script of the tests in new processes (`torchrun` for more than one); its standard output."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "examples"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, **environment}
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, timeout=timeout, env=env, cwd=ROOT)
    assert done.returncode == 0, f"{arguments} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class Result:
    """What `scripts/run_trainer.py` left behind."""

    weights: dict[str, torch.Tensor]
    log: list[dict[str, float]]
    batches: list[dict[str, Any]]
    """Each with its rows in global order."""
    state: dict[str, Any]
    shadow: dict[str, torch.Tensor]


def start_trainer(*job_files: Path, processes: int = 1) -> list[multiprocessing.process.BaseProcess]:
    """Start `scripts/run_trainer.py` in new processes, forked from a server that has the imports done.

    Several processes find one another as `torchrun` would tell them; most of a launch by `torchrun` is imports. The
    name of a process is the file with its output.
    """
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in ("", "examples", "tests", "tests/scripts"))
    context.set_forkserver_preload(["run_trainer"])  # the server imports it from PYTHONPATH, not from sys.path
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    started = []
    for rank in range(processes):
        environment = {"RANK": rank, "LOCAL_RANK": rank, **common} if processes > 1 else {}
        output = job_files[0].with_suffix(f".{rank}.out")
        output.touch()
        arguments = (output, environment, [str(file) for file in job_files])
        process = context.Process(target=run_trainer_main, args=arguments, name=str(output))
        process.start()
        started.append(process)
    return started


def run_trainer_main(output: Path, environment: dict[str, int | str], job_files: list[str]) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    with output.open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    faulthandler.enable()  # a process that is ended by a library's C++ says where it was
    importlib.import_module("run_trainer").main(*job_files)


def wait(processes: list[multiprocessing.process.BaseProcess], timeout: int = 900) -> None:
    """Until all have ended. One that fails takes the others with it, which would wait for it for ever."""
    left, end = list(processes), time.monotonic() + timeout
    while left and time.monotonic() < end and all(process.exitcode in (None, 0) for process in processes):
        multiprocessing.connection.wait([process.sentinel for process in left], timeout=end - time.monotonic())
        left = [process for process in left if process.exitcode is None]
    for process in left:
        process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        said = "\n".join(f"--- {process.name}:\n{Path(process.name).read_text()[-4000:]}" for process in processes)
        raise AssertionError(f"the training processes ended with {codes}\n{said}")


def run_trainer(out: Path, *, trainer: str, model: Path, config: dict[str, Any], **job: Any) -> Result:
    """Train in new processes; see `scripts/run_trainer.py` for the job."""
    job = write_job(out, trainer=trainer, model=str(model), config=config, **job)
    processes = job.get("processes", 1)
    wait(start_trainer(out / "job.json", processes=processes))
    return read_result(out, processes)


def shared_folder(factory: Any) -> Path:
    """The folder of this test session, the same for all workers. `factory` is pytest's `tmp_path_factory`."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def write_job(out: Path, **job: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    job = {"out": str(out), **job}
    (out / "job.json").write_text(json.dumps(job))
    return job


def read_result(out: Path, processes: int) -> Result:
    parts = [json.loads((out / f"batches-{rank}.json").read_text()) for rank in range(processes)]
    batches = [{"rows": [row for part in same for row in part["rows"]]} for same in zip(*parts, strict=True)]
    return Result(
        weights=load_file(out / "weights.safetensors"),
        log=json.loads((out / "log.json").read_text()),
        batches=batches,
        state=json.loads((out / "state.json").read_text()),
        shadow=load_file(out / "shadow.safetensors") if (out / "shadow.safetensors").exists() else {},
    )


def record_scores(trainer: Any) -> list[Any]:
    """The `TokenScores` of every batch that the trainer will score."""
    seen: list[Any] = []
    original = trainer.token_advantages

    def recording(advantages: torch.Tensor, scores: Any) -> Any:
        seen.append(scores)
        return original(advantages, scores)

    trainer.token_advantages = recording
    return seen


def watch_signals(trainer: Any) -> list[Any]:
    """What every generation batch was taught, or the part of it that was seen before a log line.

    Rows are in the order of the rollouts: the batch as the teacher left it (`plain` is GRPO's advantage), the scores,
    the advantages (B, T) that the loss got, the rollouts and the teacher's prompts of each view.
    """
    seen: list[Any] = []
    apply, batches = trainer.apply_teacher, {}

    def applying(batch: dict[str, Any], lesson: Any) -> dict[str, Any]:
        plain = batch["advantages"].clone()
        out = apply(batch, lesson)
        batches[id(lesson)] = (lesson, {**out, "plain": plain})
        return out

    def taking(log: Any, take: Any) -> Any:
        part = take()
        if part is not None:
            lesson, batch = batches[id(log.lesson)]
            order = part.rows.argsort()
            rows, total = part.rows[order], len(lesson.rollouts)
            views = {name: {k: v[rows] for k, v in view.prompts.items()} for name, view in lesson.views.items()}
            has_rows = {
                k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and len(v.shape) and len(v) == total
            }
            tensors = {k: v[rows] for k, v in has_rows.items()}
            tensors["advantages"] = None if part.advantages is None else part.advantages[order]
            media = {k: v for k, v in batch.items() if k not in tensors}
            seen.append(
                SimpleNamespace(
                    **media,
                    **tensors,
                    scores=in_order(part.scores, order),
                    metrics={k: v[order] for k, v in part.metrics.items()},
                    lesson=lesson,
                    views=views,
                    teacher=next(iter(views.values()), None),
                    rollouts=[lesson.rollouts[row] for row in rows.tolist()],
                    prompts=[lesson.rollouts[row].prompt for row in rows.tolist()],
                )
            )
        return part

    trainer.apply_teacher = applying
    for log in trainer._signals.values():
        log.take = functools.partial(taking, log, log.take)
    return seen


def in_order(scores: Any, order: torch.Tensor) -> Any:
    """`TokenScores` with its rows in another order."""
    values = {f.name: getattr(scores, f.name) for f in dataclasses.fields(scores)}
    tensors = {name: value[order] for name, value in values.items() if isinstance(value, torch.Tensor)}
    views = {
        name: dataclasses.replace(view, logps=view.logps[order], entropy=view.entropy[order], mask=view.mask[order])
        for name, view in scores.views.items()
    }
    return dataclasses.replace(scores, **tensors, views=views)


def compute_loss(trainer: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """The loss of one micro-batch of new rollouts."""
    trainer.current_gradient_accumulation_steps = 1
    return trainer._compute_loss(trainer.model, trainer._generate_and_score_completions(rows))


__all__ = [
    "HINT_TEMPLATE",
    "ROOT",
    "Result",
    "assert_same_state",
    "build",
    "compute_loss",
    "distill_settings",
    "exact_reward",
    "lenient_reward",
    "read_result",
    "record_scores",
    "run_script",
    "run_trainer",
    "settings",
    "shared_folder",
    "start_trainer",
    "state_of",
    "step_logs",
    "sums",
    "wait",
    "watch_signals",
    "write_job",
]
