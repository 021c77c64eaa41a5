"""The house rules that can be checked by reading the source: who imports what, who touches what, how long files are."""

import ast
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "trl_selfdistill"
FILES = sorted(PACKAGE.rglob("*.py"))

# For each folder (and each file at the top): what of ours it may import, and what of others. "*" is anything.
# The standard library and jaxtyping are free to all. A folder may always import its own files, except `algorithms`.
REPORTS = ("jinja2", "matplotlib")  # imported where they are used: a run needs none of them
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "_compat": (set(), {"packaging"}),
    "maths": (set(), {"torch"}),
    "ops": (set(), {"torch", "triton", "liger_kernel", "peft", "deepspeed"}),
    "context": (set(), {"torch", "transformers"}),
    "teachers": ({"ops"}, {"torch", "transformers", "peft"}),
    "scoring": ({"ops"}, {"torch", "accelerate", "peft", "transformers"}),
    "record": ({"maths", "context"}, {"torch", "accelerate", "transformers", "pyarrow", "huggingface_hub", *REPORTS}),
    "settings": ({"context", "record"}, {"trl"}),
    "grpo_settings": ({"settings"}, {"trl"}),
    "teacher_config": ({"settings", "context"}, {"trl"}),
    "config": ({"teacher_config", "settings", "record"}, {"trl"}),
    "trainer": (
        {"config", "teacher_config", "settings", "maths", "context", "teachers", "scoring", "ops", "record"},
        {"*"},
    ),
    "algorithms": (
        {"trainer", "config", "settings", "grpo_settings", "teacher_config", "maths", "context", "ops"},
        {"torch"},
    ),
    "rewards": ({"context"}, {"math_verify"}),
    "cli": ({"*"}, {"*"}),
    "__init__": ({"*"}, set()),
    "__main__": ({"cli"}, set()),
}
PLAIN_PYTHON = (
    "context/rollout.py",
    "context/builders.py",
    "context/templates.py",
    "record/wording.py",
    "record/health.py",
    "context/memory.py",
)


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path) -> list[tuple[str, list[str]]]:
    """(module, imported names) of each import; relative ones made absolute."""
    found: list[tuple[str, list[str]]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(["trl_selfdistill", *path.relative_to(PACKAGE).parts[: -node.level]])
            module = f"{parent}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            found.append((module, [alias.name for alias in node.names]))
    return found


def roots(path: Path) -> set[str]:
    return {module.partition(".")[0] for module, _ in imports(path)}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def broken_rules(path: Path) -> list[str]:
    layer = layer_of(path)
    ours, theirs = LAYERS[layer]
    broken = []
    for module, names in imports(path):
        root, _, rest = module.partition(".")
        if root != "trl_selfdistill":
            free = root in sys.stdlib_module_names or root == "jaxtyping"
            broken += [] if free or theirs & {root, "*"} else [module]
            continue
        for target in [rest.partition(".")[0]] if rest else names:
            if target == layer:
                # One algorithm may use another's formulas, never its trainer or configuration.
                classes = [name for name in names if layer == "algorithms" and not name.islower()]
                broken += [f"{module}: {classes}"] if classes else []
            elif not ours & {target, "*"}:
                broken.append(module)
    return broken


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_imports_what_its_folder_may(path):
    assert not broken_rules(path)


def test_nobody_imports_upwards():
    """The table itself has no circle: whatever a layer may import may not import the layer."""
    for layer, (ours, _) in LAYERS.items():
        for target in ours - {"*"}:
            assert layer not in LAYERS[target][0], (layer, target)


@pytest.mark.parametrize("name", PLAIN_PYTHON)
def test_plain_python(name):
    assert not {"torch", "transformers", "accelerate"} & roots(PACKAGE / name)


def test_a_wrong_import_is_seen(tmp_path):
    for layer, line in (
        ("maths", "from trl_selfdistill.trainer import base"),
        ("context", "import trl"),
        ("algorithms", "from trl_selfdistill.algorithms.rlrt import RLRTTrainer"),
        ("scoring", "from ..maths import phi"),
        ("trainer", "from trl_selfdistill import RLRTTrainer"),
    ):
        file = PACKAGE / layer / "not_there.py"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "read_text", lambda self, line=line: line)
            assert broken_rules(file), line


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_trainer_touches_private_names_of_trl(path):
    if layer_of(path) == "trainer":
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
    private = [m for m, _ in imports(path) if m.startswith("trl.") and m.split(".")[-1].startswith("_")]
    assert not private


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= (300 if name_of(path) == "trainer/base.py" else 200), len(lines)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body  # TRL's 15 parameters are no complexity
            start = body[0].lineno if body else node.lineno
            assert (node.end_lineno or 0) - start <= 40, f"{node.name} is longer than 40 lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nobody_guesses_with_hasattr(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    guesses = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "hasattr"]
    # DeepSpeed marks a partitioned parameter by the presence of an attribute, and by nothing else.
    assert len(guesses) <= (1 if path.name == "head.py" else 0)
