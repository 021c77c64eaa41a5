"""A folder may hold the checkpoints of several runs: a run that resumes goes on with its own."""

import json
import logging
import warnings

import pytest
from helpers import assert_same_state, build, distill_settings, state_of
from transformers import AutoModelForCausalLM

from trl_selfdistill import RLRTConfig, RLRTTrainer
from trl_selfdistill.trainer.checkpoint import RUN, VALUES, run_in, run_of, write_run


@pytest.fixture
def make(model_dir, tokenizer, tmp_path):
    def made(max_steps: int, save_steps: int = 1, folder: str = "run", **overrides) -> RLRTTrainer:
        saves = {"save_strategy": "steps", "save_steps": save_steps, "lr_scheduler_type": "constant"}
        config = RLRTConfig(**distill_settings(tmp_path / folder, max_steps=max_steps, **saves, **overrides))
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="float32")
        return build(RLRTTrainer, config, model, tokenizer)

    return made


def test_a_new_run_in_a_used_folder_warns_and_resumes_itself(make, tmp_path, caplog):
    first = make(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="A new run starts")
        first.train()
    assert run_in(tmp_path / "run") == first.run_id
    assert all(run_of(tmp_path / f"run/checkpoint-{step}") == first.run_id for step in (1, 2, 3))

    second = make(1, learning_rate=1e-2, seed=7)
    with pytest.warns(
        UserWarning, match=r"checkpoint-3, checkpoint-2, checkpoint-1.*resume_from_checkpoint='.*checkpoint-3'"
    ):
        second.train()
    assert second.run_id != first.run_id
    assert run_in(tmp_path / "run") == second.run_id
    own = state_of(second.model)

    resumed = make(1, learning_rate=1e-2, seed=7)
    with caplog.at_level(logging.WARNING, "trl_selfdistill"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="A new run starts")
        resumed.train(resume_from_checkpoint=True)
    assert [r.getMessage() for r in caplog.records if "goes on from" in r.getMessage()] == [
        f"resume_from_checkpoint=True goes on from {tmp_path / 'run/checkpoint-1'}."
    ]
    assert resumed.run_id == second.run_id
    assert resumed.state.global_step == 1  # and not the first run's 3
    assert_same_state(state_of(resumed.model), own)


def test_a_named_folder_is_taken_as_given_and_its_run_goes_on(make, tmp_path):
    first = make(2)
    first.train()
    other = make(3, folder="other")
    other.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))
    assert other.run_id == first.run_id == run_in(tmp_path / "other") == run_of(tmp_path / "other/checkpoint-3")


def test_without_a_run_file_the_newest_checkpoint_is_taken(make, tmp_path):
    first = make(2)
    first.train()
    (tmp_path / "run" / RUN).unlink()
    for file in (tmp_path / "run").glob(f"*/{VALUES}"):  # as older versions wrote it
        values = json.loads(file.read_text())
        assert values.pop("run") == first.run_id
        file.write_text(json.dumps(values))
    resumed = make(3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    again = make(3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3


def test_a_run_without_a_checkpoint_of_its_own_is_told_so(make, tmp_path):
    make(1).train()
    write_run(tmp_path / "run", "of another run")
    with pytest.raises(ValueError, match=r"no complete checkpoint of this run.*checkpoint-1.*name a folder"):
        make(2).train(resume_from_checkpoint=True)
