"""`benchmarks/gpu.sh` on a CPU: all its parts run, none stops another, its tables are those of the README."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import gpu_tables

VARIANTS = {
    "divergence": {"ours", "gemm", "naive", "trl", "liger"},
    "logps": {"ours", "gemm", "naive", "trl"},  # Liger's cross-entropy needs a GPU
    "compiled": {"ours", "liger"},
}


def part(folder, name, code, limit=1.0):
    out = folder / f"{name}.json"
    return gpu.Part(name, limit, [sys.executable, "-c", code, str(out)], out)


WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('[1, NaN]')"


def test_a_broken_part_stops_no_other(tmp_path, capsys):
    parts = [
        part(tmp_path, "first", WRITES),
        part(tmp_path, "broken", f"{WRITES}; raise SystemExit(3)"),
        part(tmp_path, "cut off", "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('[1, ')"),
        part(tmp_path, "last", WRITES),
    ]
    out = tmp_path / "out.json"
    assert not gpu.run_all(parts, out, {"card": "none"}, whole=300.0)
    report = json.loads(out.read_text())
    assert report["machine"] == {"card": "none"}
    found = {name: (done["status"], done["results"]) for name, done in report["parts"].items()}
    assert found == {
        "first": ("ok", [1, None]),
        "broken": ("failed with exit status 3", [1, None]),
        "cut off": ("ok", None),
        "last": ("ok", [1, None]),
    }
    printed = capsys.readouterr().out
    assert "part 2 of 4, broken, at most" in printed and "Parts that failed: broken" in printed


def test_a_part_out_of_time_is_ended_with_all_it_started(tmp_path):
    child = "import subprocess, sys; c = subprocess.Popen(['sleep', '600']); "
    child += "import pathlib; pathlib.Path(sys.argv[1]).write_text(str(c.pid)); c.wait()"
    parts = [part(tmp_path, "slow", child), part(tmp_path, "last", WRITES, limit=60.0)]
    out = tmp_path / "out.json"
    assert not gpu.run_all(parts, out, {}, whole=60.0 + gpu.GRACE + 10.0)
    report = json.loads(out.read_text())["parts"]
    assert [report[name]["status"] for name in ("slow", "last")] == ["out of time", "ok"]
    stat = Path(f"/proc/{report['slow']['results']}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"  # nobody may have collected it


def test_the_limits_fit_into_eight_minutes(tmp_path):
    assert sum(p.limit for p in gpu.parts_of(False, tmp_path)) + gpu.GRACE <= gpu.WHOLE == 480.0


def test_the_readme_has_the_tables():
    readme = (ROOT / "benchmarks/README.md").read_text()
    assert "\n".join(gpu_tables.tables({})).strip() in readme
    assert "benchmarks/gpu.sh" in readme


def test_results_become_rows():
    op = {"model": "qwen3-8b", "tokens": 4096, "seconds": 0.02, "bytes": 2.5e9}
    parts = {
        "divergence": {
            "results": [
                {**op, "beta": 0.5, "variant": "ours"},
                {**op, "beta": 0.5, "variant": "naive", "seconds": None, "bytes": None},
            ]
        },
        "compiled": {"results": [{**op, "beta": 0.5, "variant": v} for v in ("ours", "liger_compiled")]},
        "logps": {"results": [{**op, "frozen_head": True, "variant": "trl"}]},
        "phase": {
            "results": {
                "comparison": [
                    {"model": "smollm2", "variants": {"rlrt": {"seconds": [9.0, None, 1.0, 2.0], "mb": 1500}}}
                ]
            }
        },
    }
    lines = gpu_tables.tables(parts)
    had, none, not_measured = "20.00 ms, 2.5 GB", "no result", "not measured"
    cells = (had, not_measured, none, not_measured, not_measured, had)
    assert gpu_tables.row("qwen3-8b", 4096, 0.5, *cells) in lines
    assert gpu_tables.row("qwen3-8b", 4096, "frozen", *[not_measured] * 3, had, not_measured) in lines
    assert gpu_tables.row("smollm2", not_measured, "2.00 s, 1.5 GB", *[not_measured] * 4) in lines


@pytest.mark.slow
@pytest.mark.apart
def test_all_parts_run_at_toy_size(tmp_path):
    out = tmp_path / "out.json"
    done = subprocess.run(
        [str(ROOT / "benchmarks/gpu.sh"), "--toy", "--json", str(out)],
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == [p.name for p in gpu.parts_of(False, tmp_path)]
    assert {p["status"] for p in parts.values()} == {"ok"}
    assert set(parts["tests"]["results"].values()) == {"passed"}
    for name, variants in VARIANTS.items():
        rows = parts[name]["results"]
        assert {row["variant"] for row in rows} == variants
        assert all(row["seconds"] > 0 for row in rows)
        assert all(row["gradient_error"] < 1e-2 for row in rows if row["variant"] == "ours")
    comparison = parts["phase"]["results"]["comparison"]
    assert [(c["model"], list(c["variants"])) for c in comparison] == [
        (model, ["grpo", "opsd"]) for model in gpu_tables.PHASE_MODELS
    ]
    assert all(row["seconds"][0] > 0 for c in comparison for row in c["variants"].values())
