"""What is published, and how: contents of the archives, workflows, and what the README says of them."""

import importlib.util
import re

import pytest
import yaml
from helpers import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture
def archives(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("archives", ROOT / ".ci/archives.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel_of(archives) -> set[str]:
    return archives.package_files() | {
        "trl_selfdistill-1.dist-info/licenses/LICENSE",
        "trl_selfdistill-1.dist-info/RECORD",
    }


def test_a_wheel_holds_the_package_and_nothing_else(archives):
    good = wheel_of(archives)
    assert archives.wheel_mistakes(good) == []
    for change in ({"tests/test_x.py"}, {"trl_selfdistill/py.typed"}, {"trl_selfdistill-1.dist-info/licenses/LICENSE"}):
        assert len(archives.wheel_mistakes(good ^ change)) == 1, change


def test_an_sdist_holds_what_is_named_for_it(archives):
    tops = [
        "PKG-INFO",
        ".gitignore",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
        "mkdocs.yml",
    ]
    tops += ["pyproject.toml", "constraints.txt", ".ci/run", ".github/x", "benchmarks/x", "docs/x", "examples/x"]
    tops += ["recipes/x", "tests/x"]
    good = {f"trl_selfdistill-1/{name}" for name in [*tops, *archives.package_files()]}
    assert archives.sdist_mistakes(good) == []
    for name in ("LICENSE", "trl_selfdistill/py.typed", "notes.txt", "docs/__pycache__/x.pyc"):
        assert archives.sdist_mistakes(good ^ {f"trl_selfdistill-1/{name}"}), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist_and_pin_actions(path):
    text, makefile = path.read_text(), (ROOT / "Makefile").read_text()
    targets = {word for line in re.findall(r"run: make (.*)", text) for word in line.split() if word.islower()}
    targets |= {target for line in re.findall(r"target: \[(.*)\]", text) for target in line.split(", ")}
    assert not [target for target in targets if f"\n{target}:" not in makefile]
    uses = [line.strip() for line in re.findall(r"uses: (.*)", text) if not line.startswith("$/")]
    assert uses
    assert not [line for line in uses if not re.fullmatch(r"[\w/.-]+@[0-9a-f]{40} # v[\d.]+", line)]


def test_the_workflow_runs_everything_that_ci_runs():
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    assert jobs["all"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert [minor.rpartition(".")[0] for minor in jobs["trl"]["strategy"]["matrix"]["trl"]] == ["1.15", "1.16"]
    run = set(re.findall(r"^make (\S+)", (ROOT / ".ci/run").read_text(), re.M))
    assert run == {"test", "test-trl", "docs", *jobs["others"]["strategy"]["matrix"]["target"]}


def test_only_a_tag_publishes_and_no_token_is_stored():
    text = (ROOT / ".github/workflows/publish.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true
    job = workflow["jobs"]["pypi"]
    assert job["environment"]["name"] == "pypi"
    assert job["permissions"] == {"id-token": "write"}
    assert set(job["needs"]) == {"tests", "build"}
    assert "secrets." not in text


def test_the_readme_says_what_is_published_and_how_to_install():
    (install,) = re.findall(r"^## Install\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    assert "not on PyPI" in install
    assert "pip install ." in install
    assert "pip install dist/*.whl" in install
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.md")]
    assert not [page for page in pages if re.search(r"pip install ['\"]?trl-selfdistill", page.read_text())]
    # Runners such as uv would look for it there.
    assert not [path for path in (ROOT / "examples").glob("*.py") if "# /// script" in path.read_text()]


def test_the_skill_is_in_the_package_and_names_what_exists():
    """A file for coding assistants, where typer, fastapi and TRL have theirs."""
    import trl_selfdistill

    file = ROOT / "trl_selfdistill/.agents/skills/trl-selfdistill/SKILL.md"
    head, _, text = file.read_text().removeprefix("---\n").partition("\n---\n")
    keys = dict(line.split(": ", 1) for line in head.splitlines())
    assert keys["name"] == file.parent.name
    assert 100 < len(keys["description"]) <= 1024
    fields = set()
    for name in trl_selfdistill.__all__:
        if name.endswith("Config"):
            fields |= set(getattr(trl_selfdistill, name).__dataclass_fields__)
    metrics = (ROOT / "docs/metrics.md").read_text() + "".join(
        page.read_text() for page in (ROOT / "docs").glob("*.md")
    )
    lora = {"lora_dropout", "reward_funcs", "privileged_context", "token_signals", "context_builder"}
    named = re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)(?:=[^`]*)?`", text)
    assert len(named) > 10
    assert not [name for name in named if name not in fields | lora]
    assert not [m for m in re.findall(r"`([a-z_]+/[a-z_0-9]+)`", text) if f"`{m}`" not in metrics]
