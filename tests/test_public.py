"""The public surface, and that all of it is documented."""

import inspect
from dataclasses import fields

import contract
import pytest
from helpers import ROOT
from trl import GRPOConfig, GRPOTrainer

import trl_selfdistill

SURFACE = [
    "AntiSDConfig",
    "AntiSDTrainer",
    "Context",
    "EntropyGate",
    "OPSAConfig",
    "OPSATrainer",
    "OPSDConfig",
    "OPSDTrainer",
    "PowerOPDConfig",
    "PowerOPDTrainer",
    "PrivilegedContextCollator",
    "RLCSDConfig",
    "RLCSDTrainer",
    "RLRTConfig",
    "RLRTTrainer",
    "RLSDConfig",
    "RLSDTrainer",
    "Rollout",
    "SDPOConfig",
    "SDPOTrainer",
    "SelfDistillConfig",
    "linear_divergence",
    "linear_logps",
]
TRAINERS = [name for name in trl_selfdistill.__all__ if name.endswith("Trainer")]
CONFIGS = [name for name in trl_selfdistill.__all__ if name.endswith("Config")]


def docs() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))


def test_the_surface_holds_what_others_rely_on():
    assert set(SURFACE) <= set(trl_selfdistill.__all__)
    assert sorted(trl_selfdistill.__all__) == trl_selfdistill.__all__
    assert set(dir(trl_selfdistill)) == {*trl_selfdistill.__all__, "__version__"}


@pytest.mark.parametrize("name", trl_selfdistill.__all__)
def test_every_public_name_has_a_docstring_and_stands_in_the_docs(name):
    assert (getattr(trl_selfdistill, name).__doc__ or "").strip()
    assert f"`{name}`" in docs()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_a_configuration_is_documented_and_has_help(name):
    config = getattr(trl_selfdistill, name)
    inherited = {f.name for f in fields(GRPOConfig)}
    text = docs()
    for f in fields(config):
        if f.name not in inherited:
            assert f.metadata.get("help"), f.name
            assert any(f"{f.name} (`" in (c.__doc__ or "") for c in config.__mro__), f.name
            assert f"`{f.name}`" in text, f.name


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_take_grpos_arguments_and_one_more(name):
    ours = inspect.signature(getattr(trl_selfdistill, name)).parameters
    theirs = inspect.signature(GRPOTrainer).parameters
    assert list(ours) == [*theirs, "context_builder"]
    assert all(ours[p].default == theirs[p].default for p in theirs)


@pytest.mark.parametrize("name", TRAINERS)
def test_help_names_and_types_every_argument(name):
    trainer = getattr(trl_selfdistill, name)
    parameters = inspect.signature(trainer).parameters
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters.values())
    assert all(f"\n    {p} (" in (trainer.__init__.__doc__ or "") for p in parameters)


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_are_labelled(name):
    trainer = getattr(trl_selfdistill, name)
    assert trainer._name == name.removesuffix("Trainer")
    assert trainer._tag_names == ["trl", "trl-selfdistill", trainer._name.lower()]
    assert trainer._paper["id"] in trainer._paper["citation"]


@pytest.mark.parametrize("name", TRAINERS)
def test_every_algorithm_has_a_page_in_the_navigation_and_a_row_in_the_readme(name):
    page = f"{name.removesuffix('Trainer').lower()}.md"
    assert (ROOT / "docs" / page).is_file()
    assert f": {page}" in (ROOT / "mkdocs.yml").read_text()
    assert f"[`{name}`](docs/{page})" in (ROOT / "README.md").read_text()
    assert f"| [{name.removesuffix('Trainer')}]({page}) |" in (ROOT / "docs/index.md").read_text()
    assert name.removesuffix("Trainer") in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", TRAINERS)
def test_every_metric_is_documented(name, model_dir, tokenizer, tmp_path):
    trainer = contract.make(contract.trainers()[name], model_dir, tokenizer, tmp_path, max_steps=4)
    trainer.train()
    ours = ("self_distill/", "completions/epistemic", "completions/mentions", f"{trainer._name.lower()}/")
    keys = {key for entry in trainer.state.log_history for key in entry if key.startswith(ours)}
    assert len(keys) > (10 if trainer.views else 7)
    text = docs()
    assert not [key for key in sorted(keys) if f"`{key}`" not in text]
