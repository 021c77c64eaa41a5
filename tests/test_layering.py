"""The house rules that can be checked by reading the source: who imports what, who touches what, how long files are."""

import ast
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "trl_selfdistill"
FILES = sorted(PACKAGE.rglob("*.py"))
NO_TRL = ("signals.py", "contexts.py", "templates.py", "collator.py", "teacher.py", "metrics.py", "datachecks.py")
ONLY_TORCH = {"torch", "jaxtyping", "math", "dataclasses", "statistics", "collections", "typing"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("name", NO_TRL)
def test_maths_text_and_weights_import_no_trl(name):
    assert "trl" not in roots(PACKAGE / name)
    assert not {"trl_selfdistill.trainer", "trl_selfdistill.config"} & imports(PACKAGE / name)


def test_the_ops_import_no_trl_and_nothing_else_of_ours():
    for path in (PACKAGE / "ops").glob("*.py"):
        found = imports(path)
        assert not any(name.split(".")[0] == "trl" for name in found), path
        assert all(name.startswith("trl_selfdistill.ops") for name in found if "trl_selfdistill" in name), path


def test_signals_import_torch_alone():
    assert roots(PACKAGE / "signals.py") <= ONLY_TORCH


def test_contexts_and_templates_are_plain_python():
    for name in ("contexts.py", "templates.py"):
        assert not {"torch", "transformers"} & roots(PACKAGE / name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_trainer_touches_private_names_of_trl(path):
    if path.name == "trainer.py":
        return
    tree = ast.parse(path.read_text())
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr.startswith("_")
    }
    own |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own |= {t.id for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and isinstance(t := n.target, ast.Name)}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    # `_VALID_DICT_FIELDS` is how TRL wants a configuration to declare its dictionary fields.
    assert used - own <= {"_VALID_DICT_FIELDS"}, used - own
    assert not any(name.startswith("trl.") and name.split(".")[-1].startswith("_") for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    lines = path.read_text().splitlines()
    # trainer.py: all contact with TRL in one file, of which 60 lines are TRL's 15 parameters and the imports.
    assert len(lines) <= (320 if path.name == "trainer.py" else 200), len(lines)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body  # TRL's 15 parameters are no complexity
            start = body[0].lineno if body else node.lineno
            assert (node.end_lineno or 0) - start <= 40, f"{node.name} is longer than 40 lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_guesses_with_hasattr(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    guesses = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "hasattr"]
    # DeepSpeed marks a partitioned parameter by the presence of an attribute, and by nothing else.
    assert len(guesses) <= (1 if path.name == "head.py" else 0)
