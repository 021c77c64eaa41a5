"""The notebook is the example script, and its cells run, with a small model in the place of the big one."""

import sys
from typing import Any

import nbformat
import pytest
import torch
from datasets import Dataset
from helpers import ROOT, lenient_reward
from tiny_policy import build_model, build_tokenizer, sums, supervised_steps

sys.path.insert(0, str(ROOT / "examples"))
import make_notebook


def test_the_notebook_is_the_script():
    written = make_notebook.SCRIPT.with_suffix(".ipynb").read_text()
    assert written == make_notebook.notebook_of(make_notebook.SCRIPT), "run: python examples/make_notebook.py"
    code = compile(make_notebook.SCRIPT.read_text(), "rlrt_qlora.py", "exec")
    assert code


def test_cells_of_a_script():
    lines = [
        "# %% [markdown]",
        "# # Title",
        "#",
        "# text",
        "",
        '# %% tags=["a", "b"]',
        "# %pip install x",
        "# a comment",
    ]
    script = "\n".join([*lines, "x = 1", "", "# %%", "y = 2", ""])
    text, first, second = make_notebook.cells_of(script)
    assert (text.cell_type, text.source) == ("markdown", "# Title\n\ntext")
    assert (first.cell_type, first.source) == ("code", "%pip install x\n# a comment\nx = 1")
    assert first.metadata.tags == ["a", "b"]
    assert (second.source, dict(second.metadata)) == ("y = 2", {})


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A policy that says sums, in widths that 4-bit kernels for CPUs can do: multiples of 64."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = build_model(tokenizer, intermediate_size=256)
    supervised_steps(model, tokenizer, steps=40)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_cells_run_with_a_small_model(small_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.reads(make_notebook.SCRIPT.with_suffix(".ipynb").read_text(), as_version=4)
    small = {"MODEL": str(small_model), "DATASET": Dataset.from_list(list(sums())), "REWARD": lenient_reward}
    small |= {"STEPS": 2, "PROMPTS_PER_STEP": 2, "COMPLETION_TOKENS": 4, "DTYPE": "float32"}
    scope: dict[str, Any] = {}
    given = set()
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or "install" in tags:
            continue
        if "parameters" in tags:
            given = {line.split(" = ")[0] for line in cell.source.splitlines() if " = " in line}
            assert given == set(small), "the cell of parameters has others than the test gives"
            scope.update(small)
            continue
        exec(compile(cell.source, "cell", "exec"), scope)
    assert given
    trainer = scope["trainer"]
    assert trainer.state.global_step == 2
    assert trainer.model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    assert (tmp_path / "Qwen3-1.7B-RLRT/adapter_model.safetensors").exists()
    assert "trained with RLRT" in (tmp_path / "Qwen3-1.7B-RLRT/README.md").read_text()
    printed = capsys.readouterr().out
    assert "the teacher was shown:" in printed
    assert "weight =" in printed
