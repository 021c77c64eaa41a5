"""One line per logging step."""

import math

from helpers import build, distill_settings

from trl_selfdistill import AntiSDConfig, AntiSDTrainer
from trl_selfdistill.record.progress import ProgressLines, progress_line


def test_progress_lines_show_what_was_logged(model, tokenizer, tmp_path, capsys):
    config = AntiSDConfig(**distill_settings(tmp_path, max_steps=2, context="gold"))
    build(AntiSDTrainer, config, model, tokenizer, callbacks=[ProgressLines()]).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == ["step 1/2", "step 2/2"]
    for name in ("loss", "reward", "correct", "taught", "log-ratio", "gate"):
        assert f"  {name} " in lines[0]
    assert "divergence" not in lines[0]


def test_a_line_has_what_exists_and_no_more():
    logs = {"reward": 0.5, "loss": -0.00012345, "self_distill/divergence": math.nan, "self_distill/correct": None}
    line = progress_line(logs, 7, 150)
    words = line.split()
    assert words == ["step", "7/150", "loss", "-0.000123", "reward", "0.5", "correct", "-", "divergence", "-"]
    assert progress_line({"train_runtime": 3.0}, 7, 150) == ""
    assert progress_line({"eval_reward": 3.0}, 7, 150) == ""
