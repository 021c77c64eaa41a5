"""Fixtures. Nothing here needs a network; all models are built on the spot."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tiny_policy import build_model, build_tokenizer, tiny_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def model(tokenizer):
    """An untrained policy of 0.43 million parameters, new for each test."""
    return build_model(tokenizer)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """The trained tiny policy (23 % of the sums right, 97 % with the hint), made once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "tiny-policy"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            policy, tokenizer = tiny_policy()
            unfinished = shared / "tiny-policy-unfinished"
            policy.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            shutil.move(unfinished, folder)
    return folder


@pytest.fixture
def tiny(tiny_dir):
    """(model, tokenizer) of the trained tiny policy, new for each test."""
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32), AutoTokenizer.from_pretrained(tiny_dir)
