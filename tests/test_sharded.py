"""DDP, FSDP2, ZeRO-2 and ZeRO-3 train as one process does: two gloo processes on a CPU, the same scripted rollouts.

All runs of one kind share a launch, since most of a short run's time goes into its imports.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contract
import pytest
import torch
from accelerate.utils import DistributedType
from filelock import FileLock
from helpers import Result, distill_settings, read_result, run_script, shared_folder, start_trainer, wait, write_job
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_selfdistill import RLRTConfig
from trl_selfdistill.trainer.build import make_teacher

FSDP = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT"}
ZERO = {
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    **dict.fromkeys(
        ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        "auto",
    ),
}


@dataclass(frozen=True)
class Kind:
    """A way to distribute: what a config and a job get, and what a run must report."""

    distributed_type: str
    split_weights: bool
    config: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)


def fsdp(version: int, **settings: Any) -> dict[str, Any]:
    return {"fsdp": True, "fsdp_config": {"version": version, **FSDP, **settings}}


def zero(stage: int) -> Kind:
    config = {"use_cpu": False, "ddp_backend": "gloo"}  # there is no GPU; with use_cpu, DeepSpeed is ignored
    return Kind("DEEPSPEED", stage == 3, config, {"deepspeed": {"zero_optimization": {"stage": stage}, **ZERO}})


KINDS = {
    "one": Kind("NO", False),
    "DDP": Kind("MULTI_CPU", False),
    "FSDP2": Kind("FSDP", True, fsdp(2)),
    "ZeRO-2": zero(2),
    "ZeRO-3": zero(3),
}
EVERY = ("DDP", "FSDP2", "ZeRO-2", "ZeRO-3")
WITH_EMA = ("DDP", "FSDP2", "ZeRO-2")


@dataclass(frozen=True)
class Cell:
    trainer: str
    teacher: str
    lora: bool = False
    kinds: tuple[str, ...] = EVERY
    config: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    kind_config: dict[str, Any] = field(default_factory=dict)
    """Not for the one process that the run is compared with."""


# Rows without a teacher on one process only: no taught token there in any micro-batch, other numbers of forwards.
UNEVEN = {"taught": [0, 1, 3]}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-4}
SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **ADAM}
CELLS = {
    "rlrt-live": Cell("RLRT", "live"),
    "rlrt-ema": Cell("RLRT", "ema", kinds=WITH_EMA),
    "rlrt-base-lora": Cell("RLRT", "base", lora=True),
    "rlrt-uneven": Cell("RLRT", "live", config={"context": "gold"}, job=UNEVEN),
    "antisd-live-lora": Cell("AntiSD", "live", lora=True, config={"antisd_warmup": 1, "context": "gold"}),
    "antisd-ema-lora": Cell("AntiSD", "ema", lora=True, kinds=WITH_EMA, config={"antisd_warmup": 1}),
    "opsd-live": Cell("OPSD", "live", job={"evaluate": True}),
    "opsd-ema": Cell("OPSD", "ema", kinds=WITH_EMA),
    "opsd-ema-lora": Cell("OPSD", "ema", lora=True, kinds=WITH_EMA),
    "opsd-base-lora": Cell("OPSD", "base", lora=True),
    "opsd-base": Cell("OPSD", "base", kinds=("DDP",)),
    "opsd-accumulated": Cell("OPSD", "live", config={"gradient_accumulation_steps": 2}),
    "opsd-policy": Cell("OPSD", "base", lora=True, config={"opsd_policy_weight": 0.5}),
    "opsd-uneven": Cell("OPSD", "live", job=UNEVEN),
    "opsd-uneven-accumulated-policy": Cell(
        "OPSD", "live", config={"gradient_accumulation_steps": 2, "opsd_policy_weight": 0.5}, job=UNEVEN
    ),
    "opsd-untied": Cell("OPSD", "live", kinds=("FSDP2", "ZeRO-3"), job={"untied": True}),
    "opsd-ema-untied": Cell("OPSD", "ema", kinds=("FSDP2",), job={"untied": True}),
    "opsd-ema-recomputed": Cell("OPSD", "ema", kinds=("FSDP2",), kind_config=fsdp(2, activation_checkpointing=True)),
    "rlrt-ema-saved": Cell("RLRT", "ema", kinds=WITH_EMA, config=SAVED),
    "rlrt-ema-resumed": Cell("RLRT", "ema", kinds=WITH_EMA, config=SAVED, job={"resume": "rlrt-ema-saved"}),
    "antisd-saved": Cell("AntiSD", "live", lora=True, kinds=EVERY, config={**SAVED, "antisd_warmup": 3}),
    "antisd-resumed": Cell(
        "AntiSD", "live", lora=True, config={**SAVED, "antisd_warmup": 3}, job={"resume": "antisd-saved"}
    ),
}
REFUSED = {
    "ema-fsdp1": (
        "FSDP2",
        Cell("RLRT", "ema", kind_config=fsdp(1, sync_module_states=False)),
        "'ema' is not supported under FSDP1",
    ),
    "base-fsdp2": ("FSDP2", Cell("OPSD", "base"), "which FSDP2 would not shard"),
    "base-zero2": ("ZeRO-2", Cell("OPSD", "base"), "which ZeRO-2 would not shard"),
    "ema-zero3": ("ZeRO-3", Cell("OPSD", "ema"), "'ema' is not supported under ZeRO-3"),
    "base-zero3": ("ZeRO-3", Cell("RLRT", "base"), "which ZeRO-3 would not shard"),
}


def untied(model_dir: Path, folder: Path) -> Path:
    """The policy with an LM head of its own, a little larger than the embeddings."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(1.05 * model.lm_head.weight.detach())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    return folder


def write_cell(kind_name: str, folder: Path, model_dir: Path, name: str, cell: Cell, **job: Any) -> Path:
    kind, processes = KINDS[kind_name], 1 if kind_name == "one" else 2
    config = {
        "per_device_train_batch_size": 8 // processes,
        "per_device_eval_batch_size": 8 // processes,
        "num_generations": 2 if cell.trainer == "OPSD" else 4,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.03,
        "lr_scheduler_type": "constant",
        "teacher_model_kind": cell.teacher,
        "teacher_update_rate": 0.3,
        **cell.config,
        **kind.config,
        **({} if kind_name == "one" else cell.kind_config),
    }
    job = {**kind.job, **cell.job, **job}
    job["model"] = str(folder / "untied" if job.pop("untied", False) else model_dir)
    if "resume" in job:
        job["resume"] = str(folder / job["resume"] / "run/checkpoint-2")
    out = folder / name
    write_job(
        out,
        trainer=f"{cell.trainer}Trainer",
        config=contract.read_by(contract.trainers()[f"{cell.trainer}Trainer"], distill_settings(out / "run", **config)),
        processes=processes,
        lora=cell.lora,
        scripted=True,
        **job,
    )
    return out / "job.json"


def write_all(kind: str, folder: Path, model_dir: Path) -> list[Path]:
    untied(model_dir, folder / "untied")
    cells = {name: cell for name, cell in CELLS.items() if kind == "one" or kind in cell.kinds}
    jobs = [write_cell(kind, folder, model_dir, name, cell) for name, cell in cells.items()]
    refused = [(name, cell) for name, (where, cell, _) in REFUSED.items() if where == kind]
    return jobs + [write_cell(kind, folder, model_dir, name, cell, refused=True) for name, cell in refused]


def launch_once(kind: str, folder: Path, write: Callable[[], list[Path]]) -> Path:
    """`folder`, with the runs of all jobs that `write` writes there, launched once for all tests and workers."""
    processes = 1 if kind == "one" else 2
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            try:
                jobs = write()
                if kind.startswith("ZeRO"):  # DeepSpeed wants to be started by a launcher
                    run_script("tests/scripts/run_trainer.py", *map(str, jobs), processes=processes, timeout=1800)
                else:
                    wait(start_trainer(*jobs, processes=processes), timeout=1800)
            except Exception as error:  # the runs that it got to are good
                (folder / "error.txt").write_text(str(error))
    return folder


@pytest.fixture(scope="session")
def launched(model_dir, tmp_path_factory):
    """Folder of all runs of a kind."""

    def folder_of(kind: str) -> Path:
        folder = shared_folder(tmp_path_factory) / f"sharded-{kind}"
        return launch_once(kind, folder, lambda: write_all(kind, folder, model_dir))

    return folder_of


def finished(folder: Path, name: str, processes: int) -> Result:
    if not (folder / name / "state.json").exists():
        pytest.fail(f"{name} did not get to its end:\n{(folder / 'error.txt').read_text()}")
    return read_result(folder / name, processes)


def of_kind(kind: str) -> list[Any]:
    missing = kind.startswith("ZeRO") and importlib.util.find_spec("deepspeed") is None
    return [pytest.mark.slow, pytest.mark.skipif(missing, reason="needs DeepSpeed (pip install deepspeed)")]


def close(value: Any) -> Any:
    return None if value is None else pytest.approx(value, abs=1e-5, rel=1e-5)  # None: a mean over nothing


RUNS = [pytest.param(kind, name, marks=of_kind(kind)) for name, cell in CELLS.items() for kind in cell.kinds]


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_two_processes_train_as_one(kind, name, launched):
    one, two = finished(launched("one"), name, 1), finished(launched(kind), name, 2)
    assert two.state["distributed_type"] == KINDS[kind].distributed_type
    assert two.state["split_weights"] == KINDS[kind].split_weights
    assert len(one.log) == len(two.log) >= 3
    for mine, theirs in zip(one.log, two.log, strict=True):
        assert theirs["loss"] == close(mine["loss"])
        assert theirs["grad_norm"] == close(mine["grad_norm"])
        # OPSD logs means over micro-batches, whose rows are not the same when there are several.
        if not (name.startswith("opsd") and "accumulated" in name):
            for metric in (
                key for key in mine if key.startswith(("self_distill/log_ratio", "rlrt/", "antisd/", "opsd/"))
            ):
                assert theirs[metric] == close(mine[metric]), metric
    assert two.state.get("eval_loss") == close(one.state.get("eval_loss"))
    assert one.weights.keys() == two.weights.keys()
    assert one.shadow.keys() == two.shadow.keys()
    for mine, theirs in ((one.weights, two.weights), (one.shadow, two.shadow)):
        for tensor in mine:
            torch.testing.assert_close(mine[tensor], theirs[tensor], atol=1e-5, rtol=0)


RESUMED = [
    pytest.param(kind, name, marks=of_kind(kind)) for kind, name in (p.values for p in RUNS) if "resumed" in name
]


@pytest.mark.parametrize(("kind", "name"), RESUMED)
def test_a_resumed_run_ends_as_the_one_that_was_not_stopped(kind, name, launched):
    whole, resumed = (finished(launched(kind), n, 2) for n in (name.replace("resumed", "saved"), name))
    assert len(whole.batches) == 4
    assert len(resumed.batches) == 2, "it started again from the beginning"
    assert resumed.batches == whole.batches[2:]
    assert resumed.log[-1]["loss"] == pytest.approx(whole.log[-1]["loss"], abs=1e-7)
    assert resumed.state == whole.state
    for mine, theirs in ((whole.weights, resumed.weights), (whole.shadow, resumed.shadow)):
        for tensor in mine:
            torch.testing.assert_close(mine[tensor], theirs[tensor], atol=1e-7, rtol=0)


@pytest.mark.slow
def test_the_runs_have_something_to_compare(launched):
    runs = {name: finished(launched("one"), name, 1) for name in CELLS}
    for name, run in runs.items():
        assert all(entry["grad_norm"] > 1e-3 for entry in run.log), name
        assert all(entry["self_distill/log_ratio_std"] > 1e-3 for entry in run.log), name
    last = {name: run.log[-1]["self_distill/log_ratio"] for name, run in runs.items()}
    for live, ema in (("rlrt-live", "rlrt-ema"), ("opsd-live", "opsd-ema"), ("opsd-live", "opsd-base")):
        assert abs(last[live] - last[ema]) > 1e-3, f"{ema} scores with the policy's own weights"
    assert runs["rlrt-uneven"].log[0]["self_distill/has_teacher"] == 3 / 8
    assert runs["opsd-uneven-accumulated-policy"].log[0]["self_distill/has_teacher"] == 3 / 16


@pytest.mark.parametrize("name", [pytest.param(name, marks=of_kind(REFUSED[name][0])) for name in REFUSED])
def test_a_launched_trainer_refuses(name, launched):
    kind, _, message = REFUSED[name]
    for file in (launched(kind) / name / f"refused-{rank}.txt" for rank in range(2)):
        assert file.exists(), (launched(kind) / "error.txt").read_text()
        assert message in file.read_text()


def is_refused(kind: str, teacher: str, *, lora: bool) -> bool:
    """Whether no trainer can be made with this teacher where weights are split in this way."""
    if teacher == "ema":
        return kind in ("ZeRO-3", "FSDP1")
    return teacher == "base" and not lora and kind not in ("one", "DDP")


def accelerator_of(sharding: str) -> Any:
    stage = int(sharding[-1])
    deepspeed = SimpleNamespace(zero_stage=stage) if sharding.startswith("ZeRO") else None
    state = SimpleNamespace(deepspeed_plugin=deepspeed, fsdp_plugin=SimpleNamespace(fsdp_version=stage))
    return SimpleNamespace(
        state=state, distributed_type=DistributedType.DEEPSPEED if deepspeed else DistributedType.FSDP
    )


@pytest.mark.parametrize("sharding", ["ZeRO-2", "ZeRO-3", "FSDP1", "FSDP2"])
@pytest.mark.parametrize("kind", ["live", "base", "ema"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_what_cannot_be_right_is_refused(kind, sharding, lora, model, tmp_path):
    args = RLRTConfig(**distill_settings(tmp_path, teacher_model_kind=kind))
    policy = get_peft_model(model, LoraConfig(target_modules="all-linear")) if lora else model
    if not is_refused(sharding, kind, lora=lora):
        make_teacher(args, policy, accelerator_of(sharding), preloaded=False)
        return
    with pytest.raises(ValueError, match=f"teacher_model_kind='{kind}'.*{sharding}.*Use "):
        make_teacher(args, policy, accelerator_of(sharding), preloaded=False)
