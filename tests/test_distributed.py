"""Every trainer, under every way to distribute, with every teacher: as one process does (`make test-distributed`).

The trainers are those that the package exports. Each cell of the table that is printed at the end is one test here: the
largest difference of loss and gradient norm to one process over three steps, relative; or "refused", where the trainer
must not be made, and `test_a_cell_is_refused` checks the `ValueError`.
"""

import itertools
from typing import Any

import contract
import pytest
import torch
from helpers import Result, shared_folder
from test_sharded import EVERY, KINDS, Cell, finished, is_refused, launch_once, of_kind, write_cell

pytestmark = pytest.mark.distributed
TEACHERS = ("live", "base", "ema")
RUNS = [
    (name, teacher, lora)
    for name, trainer in contract.trainers().items()
    for teacher in contract.teachers_of(trainer)
    for lora in (False, True)
]
"""Trainer, teacher, and whether an adapter is trained."""
TOLERANCE = 1e-4
SMALL = 1e-3
"""Losses are differences around 0: below this, the difference is taken relative to this."""


def run_name(trainer: str, teacher: str, lora: bool) -> str:
    return f"{trainer}-{teacher}-{'lora' if lora else 'full'}"


def cells(*, refused: bool) -> list[Any]:
    return [
        pytest.param(kind, *run, marks=of_kind(kind), id=f"{kind}-{run_name(*run)}")
        for kind, run in itertools.product(EVERY, RUNS)
        if is_refused(kind, run[1], lora=run[2]) == refused
    ]


@pytest.fixture(scope="session")
def launched(model_dir, tmp_path_factory):
    """Folder of all runs of a kind. They share a launch, since most of a short run's time goes into its imports."""

    def folder_of(kind: str):
        folder = shared_folder(tmp_path_factory) / f"distributed-{kind}"

        def write():
            for trainer, teacher, lora in RUNS:
                settings = {"num_generations": 4, "teacher_sync_steps": 1, "teacher_update_rate": 0.3}
                settings |= contract.SETTINGS.get(trainer, {})
                cell = Cell(trainer.removesuffix("Trainer"), teacher, lora=lora, config=settings)
                refused = is_refused(kind, teacher, lora=lora)
                yield write_cell(kind, folder, model_dir, run_name(trainer, teacher, lora), cell, refused=refused)

        return launch_once(kind, folder, lambda: list(write()))

    return folder_of


@pytest.fixture
def show(record_property):
    """Put a text into the table that conftest.py prints at the end."""

    def put(kind: str, trainer: str, teacher: str, lora: bool, text: str) -> None:
        record_property("cell", [f"{trainer}, {teacher}", f"{kind} LoRA" if lora else kind, text])

    return put


def difference(one: Result, other: Result) -> float:
    """The largest relative difference of loss and gradient norm over all steps."""
    pairs = [
        (mine[name], theirs[name])
        for mine, theirs in zip(one.log, other.log, strict=True)
        for name in ("loss", "grad_norm")
    ]
    return max(abs(mine - theirs) / max(abs(mine), SMALL) for mine, theirs in pairs)


@pytest.mark.parametrize(("kind", "trainer", "teacher", "lora"), cells(refused=False))
def test_a_cell_trains_as_one_process(kind, trainer, teacher, lora, launched, show):
    name = run_name(trainer, teacher, lora)
    one, two = finished(launched("one"), name, 1), finished(launched(kind), name, 2)
    show(kind, trainer, teacher, lora, f"{difference(one, two):.0e}")
    assert two.state["distributed_type"] == KINDS[kind].distributed_type
    assert two.state["split_weights"] == KINDS[kind].split_weights
    assert len(one.log) == 3
    assert all(entry["grad_norm"] > SMALL for entry in one.log), "there is nothing to compare"
    assert difference(one, two) <= TOLERANCE
    for mine, theirs in ((one.weights, two.weights), (one.shadow, two.shadow)):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "trainer", "teacher", "lora"), cells(refused=True))
def test_a_cell_is_refused(kind, trainer, teacher, lora, launched, show):
    show(kind, trainer, teacher, lora, "refused")
    reason = "is not supported under" if teacher == "ema" else "keeps a second copy of the model, which"
    for rank in range(2):
        file = launched(kind) / run_name(trainer, teacher, lora) / f"refused-{rank}.txt"
        assert file.exists(), (launched(kind) / "error.txt").read_text()
        assert f"teacher_model_kind='{teacher}'" in file.read_text()
        assert f"{reason} {kind}" in file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [name for name, trainer in contract.trainers().items() if trainer.views])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_teachers_are_not_one_and_the_same(trainer, lora, launched):
    """Else a wrapper that scores with the wrong weights would go unseen."""
    last = [
        finished(launched("one"), run_name(trainer, teacher, lora), 1).log[-1]["self_distill/log_ratio"]
        for teacher in TEACHERS
    ]
    for one, other in itertools.combinations(last, 2):
        assert abs(one - other) > 1e-4, last
