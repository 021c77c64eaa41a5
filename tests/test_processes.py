"""Several processes, and restarts. Every test asserts the number of processes that it ran with."""

from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from filelock import FileLock
from helpers import (
    assert_same_state,
    build,
    distill_settings,
    read_result,
    run_trainer,
    shared_folder,
    start_trainer,
    wait,
    write_job,
)

from trl_selfdistill import AntiSDConfig, AntiSDTrainer


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_two_processes_choose_the_same_peers_and_advantages_as_one(lora, model_dir, tmp_path):
    # 3 groups of 8 on 2 processes of 12 rows: the second group straddles them.
    common = {"num_generations": 8, "optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "seed": 3}
    runs = []
    for processes in (1, 2):
        config = distill_settings(tmp_path / f"run{processes}", per_device_train_batch_size=24 // processes, **common)
        runs.append(
            run_trainer(
                tmp_path / f"out{processes}",
                trainer="RLRTTrainer",
                model=model_dir,
                config=config,
                processes=processes,
                scripted=True,
                lora=lora,
            )
        )
    one, two = runs
    assert len(one.batches) == len(two.batches) == 3
    shaped = 0
    for batch_one, batch_two in zip(one.batches, two.batches, strict=True):
        for row, other in zip(batch_one["rows"], batch_two["rows"], strict=True):
            assert (row["prompt"], row["completion"]) == (other["prompt"], other["completion"])
            assert row["context"] == other["context"]
            assert row["advantages"] == pytest.approx(other["advantages"], abs=1e-6)
            shaped += len(set(row["advantages"])) > 1
    assert shaped > 10, "the teacher shaped too few rows for the comparison to mean anything"
    for name in one.weights:
        torch.testing.assert_close(one.weights[name], two.weights[name], atol=1e-6, rtol=0)
    for name in ("self_distill/log_ratio", "self_distill/teacher_entropy_median", "rlrt/weight"):
        assert [e[name] for e in one.log] == pytest.approx([e[name] for e in two.log], abs=1e-6)


TRAINERS = {name: contract.SETTINGS.get(name, {}) for name in contract.trainers()}


def resume_settings(folder, trainer, **overrides):
    given = distill_settings(
        folder,
        **{
            "max_steps": 6,
            "lr_scheduler_type": "constant",
            "save_strategy": "steps",
            "save_steps": 3,
            "teacher_update_rate": 0.3,
            **TRAINERS[trainer],
            **overrides,
        },
    )
    return contract.read_by(contract.trainers()[trainer], given)


COMBINATIONS = [
    (name, kind, lora)
    for name, trainer in contract.trainers().items()
    for kind in contract.teachers_of(trainer)
    for lora in (False, True)
]


@pytest.mark.parametrize(("trainer", "kind", "lora"), COMBINATIONS)
def test_six_steps_are_three_steps_a_save_a_new_process_and_three_steps(trainer, kind, lora, model_dir, tmp_path):
    def run(name: str, **job):
        config = resume_settings(tmp_path / name, trainer, teacher_model_kind=kind)
        return run_trainer(tmp_path / f"out-{name}", trainer=trainer, model=model_dir, config=config, lora=lora, **job)

    whole = run("whole")
    resumed = run("resumed", resume=str(tmp_path / "whole/checkpoint-3"))
    assert len(whole.batches) == 6
    assert whole.batches[3:] == resumed.batches
    assert_same_state(whole.weights, resumed.weights)
    assert whole.log[3:] == resumed.log[-3:]
    assert whole.state == resumed.state
    assert_same_state(whole.shadow, resumed.shadow)
    assert bool(whole.shadow) == (kind == "ema")
    if trainer == "AntiSDTrainer":
        assert whole.state["values"]["gate"]["steps"] == 6
        assert whole.log[-1]["antisd/strength"] in (0.0, 0.5)


# On two processes `make test` has one for each trainer, and all of them by turns.
FEW = [
    cells[place % len(cells)] for place, cells in enumerate([c for c in COMBINATIONS if c[0] == t] for t in TRAINERS)
]
REST = [cell for cell in COMBINATIONS if cell not in FEW]
# To compare numbers of processes: sampled rollouts would differ, for every process has a seed of its own.
COMPARED = {"scripted": True, "teacher_model_kind": "ema", "optim": "sgd", "learning_rate": 0.1}


@pytest.fixture(scope="session")
def launched(model_dir, tmp_path_factory):
    """Restarts with two processes, by group, launched once for all tests and workers: most of a run is imports.

    "numbers" of processes, the "few" combinations, and the "rest" of them.
    """

    def folder_of(group: str) -> Path:
        folder = shared_folder(tmp_path_factory) / f"restarts-{group}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                launch_restarts(group, folder, model_dir)
        return folder

    return folder_of


def launch_restarts(group: str, folder: Path, model_dir: Path) -> None:
    def job(name: str, trainer: str, processes: int, *, start: str = "", lora=True, scripted=False, **settings) -> Path:
        rows = {"per_device_train_batch_size": 8 // processes}
        config = resume_settings(folder / name / "run", trainer, **rows, **settings)
        job = {"trainer": trainer, "model": str(model_dir), "config": config, "processes": processes}
        job |= {"lora": lora, "scripted": scripted}
        if start:
            job["resume"] = str(folder / start / "run/checkpoint-3")
        write_job(folder / name, **job)
        return folder / name / "job.json"

    def jobs(name: str, processes: int, start: str = "") -> list[Path]:
        starts = {trainer: f"{start}-{trainer}" if start else "" for trainer in TRAINERS}
        return [job(f"{name}-{each}", each, processes, start=starts[each], **COMPARED) for each in TRAINERS]

    if group == "numbers":
        wait(start_trainer(*jobs("one", 1)))
        wait(start_trainer(*jobs("two", 2), *jobs("there", 2, start="one"), processes=2), timeout=1200)
        wait(start_trainer(*jobs("back", 1, start="two")))
        return
    pairs = []
    for trainer, kind, lora in {"few": FEW, "rest": REST}[group]:
        name = f"{trainer}-{kind}-{lora}"
        pairs.append(job(f"whole-{name}", trainer, 2, lora=lora, teacher_model_kind=kind))
        pairs.append(job(f"resumed-{name}", trainer, 2, start=f"whole-{name}", lora=lora, teacher_model_kind=kind))
    wait(start_trainer(*pairs, processes=2), timeout=60 * len(pairs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "kind", "lora"), [*FEW, *(pytest.param(*cell, marks=pytest.mark.apart) for cell in REST)]
)
def test_two_processes_go_on_as_if_never_stopped(trainer, kind, lora, launched):
    folder = launched("few" if (trainer, kind, lora) in FEW else "rest")
    whole, resumed = (read_result(folder / f"{run}-{trainer}-{kind}-{lora}", 2) for run in ("whole", "resumed"))
    assert len(whole.batches) == 6
    assert whole.batches[3:] == resumed.batches
    assert_close_state(whole, resumed)
    for mine, theirs in zip(whole.log[3:], resumed.log[-3:], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert theirs[name] == (None if mine[name] is None else pytest.approx(mine[name], abs=1e-6)), name
    if trainer == "AntiSDTrainer":
        assert_same_gate(whole, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_resumed_run_may_have_another_number_of_processes(trainer, launched):
    one, two, there, back = (
        read_result(launched("numbers") / f"{run}-{trainer}", processes)
        for run, processes in (("one", 1), ("two", 2), ("there", 2), ("back", 1))
    )
    for other in (two, there, back):
        assert_close_state(one, other)
        assert one.log[-1]["loss"] == pytest.approx(other.log[-1]["loss"], abs=1e-6)
        if trainer == "AntiSDTrainer":
            assert_same_gate(one, other)


def assert_close_state(run, other) -> None:
    for mine, theirs in ((run.weights, other.weights), (run.shadow, other.shadow)):
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], atol=1e-6, rtol=0)


def assert_same_gate(run, other) -> None:
    mine, theirs = run.state["values"]["gate"], other.state["values"]["gate"]
    assert {**theirs, "history": None} == {**mine, "history": None}
    assert theirs["history"] == close_entropies(mine["history"])


def close_entropies(values: list[float]) -> Any:
    """Relative as well: entropies of 1.7 nats in float32, whose last digits depend on the processor and the batch."""
    return pytest.approx(values, rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_one_two_and_four_processes_agree_on_the_gate(model_dir, tmp_path):
    def run(processes: int):
        config = resume_settings(
            tmp_path / f"run{processes}",
            "AntiSDTrainer",
            per_device_train_batch_size=8 // processes,
            optim="sgd",
            learning_rate=0.01,
        )
        out = tmp_path / f"out{processes}"
        job = {"trainer": "AntiSDTrainer", "model": model_dir, "config": config, "processes": processes}
        return run_trainer(out, scripted=True, **job)

    one, *others = (run(processes) for processes in (1, 2, 4))
    assert one.state["values"]["gate"]["steps"] == 6
    assert {entry["antisd/strength"] for entry in one.log} == {0.0, 0.5}
    for other in others:
        assert_same_gate(one, other)
        for name in ("antisd/strength", "self_distill/teacher_entropy_median"):
            assert [e[name] for e in other.log] == close_entropies([e[name] for e in one.log])


def test_a_resumed_gate_keeps_the_warm_up_that_it_was_measured_with(model_dir, tokenizer, tmp_path):
    def make(max_steps: int, warmup: int) -> AntiSDTrainer:
        config = distill_settings(
            tmp_path, save_strategy="steps", save_steps=2, max_steps=max_steps, antisd_warmup=warmup
        )
        return build(AntiSDTrainer, AntiSDConfig(**config), str(model_dir), tokenizer)

    make(2, 1).train()
    with pytest.raises(ValueError, match=r"antisd_warmup=3.*measured with 1"):
        make(4, 3).train(resume_from_checkpoint=True)
