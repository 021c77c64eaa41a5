"""Every block of code in the documentation runs, with a small model under the name of the big one."""

import contextlib
import importlib
import io
import re
import shlex

import pytest
from datasets import Dataset
from helpers import ROOT
from test_docs import PAGES
from tiny_policy import build_model, build_tokenizer, sums
from transformers import TrainerCallback
from trl import GRPOConfig

import trl_selfdistill
from trl_selfdistill.cli import launch
from trl_selfdistill.cli.commands import ALGORITHMS, TOOLS, algorithm_help
from trl_selfdistill.trainer import SelfDistillTrainer

SKILL = ROOT / "trl_selfdistill/.agents/skills/trl-selfdistill/SKILL.md"
APART = ("custom_loop.md",)  # learns for a minute: tests/test_docs.py runs it
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
SHELL = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)
SNIPPET = re.compile(r'^--8<-- "(.*)"$', re.M)
TEXTS = [*PAGES, SKILL, *sorted((ROOT / "recipes").glob("*.md"))]
WITH_PYTHON = [page for page in TEXTS if PYTHON.search(page.read_text()) and page.name not in APART]
WITH_COMMANDS = [page for page in TEXTS if re.search(r"^trl-selfdistill ", page.read_text(), re.M)]


class OneStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_save = True


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A working directory in which the names of models and datasets are folders."""
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    for name in ("Qwen/Qwen3-0.6B",):
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    rows = Dataset.from_list([dict(row) for row in sums()][:16])
    (tmp_path / "trl-lib/DeepMath-103K").mkdir(parents=True)
    rows.to_json("trl-lib/DeepMath-103K/train.jsonl")
    (tmp_path / "eval/qwen3-0.6b").mkdir(parents=True)  # as `trl-selfdistill eval` leaves it
    (tmp_path / "eval/qwen3-0.6b/results.json").write_text('{"log_entry": {"eval_pass@1": 0.5, "step": 0}}')
    resolve = GRPOConfig.__post_init__

    def on_a_cpu(self):
        self.use_cpu, self.max_completion_length = True, 8
        resolve(self)

    monkeypatch.setattr(GRPOConfig, "__post_init__", on_a_cpu)
    build = SelfDistillTrainer.__init__

    def short(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.add_callback(OneStep())

    monkeypatch.setattr(SelfDistillTrainer, "__init__", short)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, hub):
    scope = {"__name__": page.stem}
    for number, block in enumerate(PYTHON.findall(page.read_text())):
        code = SNIPPET.sub(lambda found: (ROOT / found[1]).read_text(), block)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, f"{page.name}, block {number}", "exec"), scope)


def options_of(command: str) -> str:
    """All that `--help` of a command names."""
    if command in ALGORITHMS:
        config = getattr(trl_selfdistill, ALGORITHMS[command]).config_class
        return "\n".join([algorithm_help(command), *launch.all_options(config)])
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(TOOLS[command][0]).main(["--help"])
    return out.getvalue()


def commands_of(text: str) -> list[list[str]]:
    """The words of each `trl-selfdistill` command in a text's shell blocks."""
    lines = [line for block in SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("trl-selfdistill ")]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_the_commands_of_a_page_have_options_that_exist(page):
    for command, *words in commands_of(page.read_text()):
        assert command in {*ALGORITHMS, *TOOLS}, command
        known = set(re.findall(r"--[\w-]+", options_of(command)))
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known | {"--help", "--num_processes"}, (command, used - known)


def test_commands_are_found():
    text = "```bash\ntrl-selfdistill rlrt --a 1 \\\n    --b 2  # why\nls\n```\n"
    assert commands_of(text) == [["rlrt", "--a", "1", "--b", "2"]]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_the_targets_of_make_that_a_page_names_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.M)) <= targets
