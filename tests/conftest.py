"""Fixtures. Nothing here needs a network; all models are built on the spot."""

import inspect
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from beartype import BeartypeConf, beartype
from filelock import FileLock
from helpers import shared_folder
from jaxtyping import jaxtyped
from pytest import TestReport
from tiny_policy import build_tokenizer, tiny_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_selfdistill

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The shape annotations are checked at run time, in tests only. pytest's jaxtyping hook does it for the ops (see
# pyproject.toml). It cannot do it for the algorithms' modules, where it would check all fields of TrainingArguments.
CHECKED = ("trl_selfdistill.algorithms.", "trl_selfdistill.maths.")


def check_shapes() -> list[str]:
    """Put a checked version in the place of every public function of `CHECKED`, wherever it was imported to."""
    for name in trl_selfdistill.__all__:
        getattr(trl_selfdistill, name)  # imported when it is asked for
    checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "trl_selfdistill"}
    checked = {}
    for name, module in ours.items():
        if name.startswith(CHECKED):
            public = {k: v for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == name}
            checked |= {v: jaxtyped(typechecker=checker)(v) for k, v in public.items() if not k.startswith("_")}
    for module in ours.values():
        for attribute, value in list(vars(module).items()):
            if inspect.isfunction(value) and value in checked:
                setattr(module, attribute, checked[value])
    return [f"{function.__module__}.{function.__name__}" for function in checked]


SHAPE_CHECKED = check_shapes()


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


def saved_policy(factory, name: str, steps: int) -> Path:
    """The folder of the tiny policy after `steps` supervised steps, made once for all workers."""
    shared = shared_folder(factory)
    folder = shared / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            policy, tokenizer = tiny_policy(steps=steps)
            unfinished = shared / f"{name}-unfinished"
            policy.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            shutil.move(unfinished, folder)
    return folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A policy that has learned to answer with one or two digits and an end token, and no more. Two seconds to make."""
    return saved_policy(tmp_path_factory, "young-policy", steps=40)


@pytest.fixture
def model(model_dir):
    """The policy of `model_dir`, new for each test."""
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """The trained tiny policy: 23 % of the sums right, 97 % with the hint. Half a minute to make."""
    return saved_policy(tmp_path_factory, "tiny-policy", steps=400)


@pytest.fixture
def tiny(tiny_dir):
    """(model, tokenizer) of the trained tiny policy, new for each test."""
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32), AutoTokenizer.from_pretrained(tiny_dir)


def pytest_terminal_summary(terminalreporter):
    """The table of `test_distributed.py`: each of its tests put a cell into its report."""
    reports = [report for kept in terminalreporter.stats.values() for report in kept if isinstance(report, TestReport)]
    cells = [value for report in reports for name, value in report.user_properties if name == "cell"]
    if not cells:
        return
    table = {(row, column): text for row, column, text in cells}
    rows, columns = ([*dict.fromkeys(cell[i] for cell in cells)] for i in (0, 1))
    lines = [["", *columns], *([row, *(table.get((row, column), "no end") for column in columns)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.section("largest relative difference of loss and gradient norm to one process")
    for line in lines:
        terminalreporter.line("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    terminalreporter.line("refused: the trainer must not be made; test_a_cell_is_refused checks the ValueError")
