"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for sm_90."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ops_helpers import INTERPRETED, problem, solve

from trl_selfdistill.ops.types import LOGIT_FLOOR

TESTS = Path(__file__).parent
triton = pytest.importorskip("triton")


@pytest.mark.skipif(
    INTERPRETED or torch.cuda.is_available(), reason="the tests of the back ends run the kernels already"
)
def test_kernels_in_the_interpreter():
    """The tests of the back ends again, in a process where Triton interprets: the variable counts at import only.

    `make test-triton` runs all tests of the ops so.
    """
    files = [str(TESTS / "test_ops_backends.py")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-k", "liger", *files],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout


@pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs Triton's interpreter or a GPU")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Liger's kernel computes inf - inf in lanes that it masks
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("entry_clip", [None, 0.02])
def test_liger_primitive_agrees_with_the_fused_kernel(beta, entry_clip, monkeypatch):
    p = problem(4, 13, 31, bias=True, dtype=torch.float32).to("cpu" if INTERPRETED else "cuda")
    case = {"beta": beta, "entry_clip": entry_clip, "token_clip": 0.1, "softcap": 7.0, "impl": "liger"}
    fused = solve(p, **case)
    monkeypatch.setenv("LIGER_KERNEL_IMPL_SELFDISTILL_DIVERGENCE_ROWS", "liger-jsd")
    composed = solve(p, **case)
    for name, value in fused.tensors().items():
        torch.testing.assert_close(composed.tensors()[name], value, rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs Triton's interpreter or a GPU")
def test_liger_without_a_kernel_names_the_way_out(monkeypatch):
    p = problem(4, 13, 31, dtype=torch.float32).to("cpu" if INTERPRETED else "cuda")
    monkeypatch.setenv("LIGER_KERNEL_IMPL_SELFDISTILL_DIVERGENCE_ROWS", "nvidia-nothing")
    with pytest.raises(ValueError, match='impl="torch"'):
        solve(p, impl="liger")
    with pytest.raises(ValueError, match='impl="torch"'):
        solve(p.to(torch.float64), impl="liger")


def compile_for_sm90(kernel, **constants) -> tuple[str, str]:
    """(PTX, resource usage) of a kernel compiled without a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    floats = {"pre", "post", "slope", "beta", "entry_clip", "token_clip"}
    types = {
        name: "constexpr"
        if name in constants
        else "*i64"
        if name == "targets_ptr"
        else "*bf16"
        if name == "grad_ptr"
        else "*fp32"
        if name.endswith("_ptr")
        else "fp32"
        if name in floats
        else "i32"
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, types, constants)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "enable_fp_fusion": True})
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    cubin.write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return built.asm["ptx"], usage


CAPS = {"HAS_BIAS": True, "HAS_CAP": True}
CLIPS = {"HAS_ENTRY_CLIP": True, "HAS_TOKEN_CLIP": True, "HAS_GRAD": True}


@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("row_stats_kernel", CAPS | {"HAS_TARGETS": True}),
        ("logps_gradient_kernel", CAPS | {"HAS_LOGPS": True, "HAS_ENTROPY": True}),
        ("divergence_kernel", CAPS | CLIPS | {"MODE": 0}),
        ("divergence_kernel", CAPS | CLIPS | {"MODE": 1}),
        ("divergence_kernel", CAPS | CLIPS | {"MODE": 2}),
    ],
)
def test_kernels_compile_for_sm90(name, constants, tmp_path, monkeypatch):
    """No spills to local memory and no double precision, which a stray Python scalar would bring in."""
    from trl_selfdistill.ops import triton_rows

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx, usage = compile_for_sm90(getattr(triton_rows, name), BLOCK=triton_rows.MAX_BLOCK, **constants)
    assert ".f64" not in ptx
    assert re.search(r"STACK:0\b", usage) and re.search(r"LOCAL:0\b", usage), usage
    assert max(map(int, re.findall(r"REG:(\d+)", usage))) <= 128, usage


@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
def test_floor_is_the_same_everywhere():
    from trl_selfdistill.ops import triton_kernels

    assert str(LOGIT_FLOOR).replace("+", "") in triton_kernels.load_row.src
