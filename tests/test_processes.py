"""Several processes, and restarts. Every test asserts the number of processes that it ran with."""

import pytest
import torch
from helpers import assert_same_state, distill_settings, run_trainer


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_two_processes_choose_the_same_peers_and_advantages_as_one(lora, model_dir, tmp_path):
    # 3 groups of 8 on 2 processes of 12 rows: the second group straddles them.
    common = {"num_generations": 8, "optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "seed": 3}
    runs = []
    for processes in (1, 2):
        config = distill_settings(tmp_path / f"run{processes}", per_device_train_batch_size=24 // processes, **common)
        runs.append(
            run_trainer(
                tmp_path / f"out{processes}",
                trainer="RLRTTrainer",
                model=model_dir,
                config=config,
                processes=processes,
                scripted=True,
                lora=lora,
            )
        )
    one, two = runs
    assert len(one.batches) == len(two.batches) == 3
    shaped = 0
    for batch_one, batch_two in zip(one.batches, two.batches, strict=True):
        for row, other in zip(batch_one["rows"], batch_two["rows"], strict=True):
            assert (row["prompt"], row["completion"]) == (other["prompt"], other["completion"])
            assert row["context"] == other["context"]
            assert row["advantages"] == pytest.approx(other["advantages"], abs=1e-6)
            shaped += len(set(row["advantages"])) > 1
    assert shaped > 10, "the teacher shaped too few rows for the comparison to mean anything"
    for name in one.weights:
        torch.testing.assert_close(one.weights[name], two.weights[name], atol=1e-6, rtol=0)
    for name in ("self_distill/log_ratio", "self_distill/teacher_entropy_median", "rlrt/weight"):
        assert [e[name] for e in one.log] == pytest.approx([e[name] for e in two.log], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_four_steps_are_two_steps_a_save_a_new_process_and_two_steps(lora, model_dir, tmp_path):
    def run(name: str, **kwargs):
        config = distill_settings(
            tmp_path / name, max_steps=4, lr_scheduler_type="constant", save_strategy="steps", save_steps=2
        )
        return run_trainer(
            tmp_path / f"out-{name}", trainer="RLRTTrainer", model=model_dir, config=config, lora=lora, **kwargs
        )

    whole = run("whole")
    resumed = run("resumed", resume=str(tmp_path / "whole/checkpoint-2"))
    assert len(whole.batches) == 4
    assert len(resumed.batches) == 2
    assert whole.batches[2:] == resumed.batches
    assert_same_state(whole.weights, resumed.weights)
    assert whole.log[2:] == resumed.log[-2:]
