"""Every back end against float64, the naive op in the same dtype and the properties of a divergence."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ops_helpers import GRADIENTS, IMPLS, INTERPRETED, device_of, naive_divergence, problem, solve, truth

from trl_selfdistill.ops import linear_divergence, linear_logps

# Relative to the largest entry of the truth: a few units of rounding of what is returned (bf16 gradients) or of the
# logits (fp32), which is what the naive op pays too.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3}
# Shrinking takes minutes in the interpreter.
PHASES = [Phase.explicit, Phase.generate] if INTERPRETED else list(Phase)
SHAPES = [(1, 3, 5), (5, 13, 31)] if INTERPRETED else [(1, 3, 5), (7, 13, 31), (23, 17, 101)]
TRAINABLE = [GRADIENTS] if INTERPRETED else [GRADIENTS, ("student",)]
CASES = list(itertools.product([0.0, 0.5, 1.0], [None, 0.02], [None, 0.1], [None, 7.0]))


@pytest.fixture
def several_blocks_per_row(monkeypatch):
    if INTERPRETED:
        from trl_selfdistill.ops import triton_rows

        monkeypatch.setattr(triton_rows, "MAX_BLOCK", 16)


def dtypes(impl):
    return [torch.float32, torch.bfloat16] + ([torch.float64] if impl == "torch" else [])


@pytest.mark.parametrize(("impl", "dtype"), [(i, d) for i in IMPLS for d in dtypes(i)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("several_blocks_per_row")
@pytest.mark.parametrize("trainable", TRAINABLE, ids=len)
def test_no_worse_than_naive(impl, dtype, shape, trainable):
    p = problem(*shape, bias=shape != SHAPES[1], dtype=dtype)
    on_device = p.to(device_of(impl))
    for beta, entry_clip, token_clip, softcap in CASES:
        case = {
            "beta": beta,
            "entry_clip": entry_clip,
            "token_clip": token_clip,
            "softcap": softcap,
            "temperature": 1.2,
        }
        expected = truth(p, trainable=trainable, **case).tensors()
        naive = solve(p, trainable=trainable, op=naive_divergence, **case).tensors()
        ours = solve(on_device, trainable=trainable, impl=impl, chunk_bytes=50 * shape[2], **case).tensors()
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            allowed = (naive[name] - value).abs().max() + TOLERANCE[dtype] * max(1.0, value.abs().max())
            error = (ours[name] - value).abs().max()
            assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e} for {case}"


@pytest.mark.usefixtures("several_blocks_per_row")
@pytest.mark.parametrize("impl", IMPLS)
@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=12 if INTERPRETED else 80,
    derandomize=True,
    phases=PHASES,
)
@given(
    n=st.integers(1, 9),
    width=st.integers(1, 9),
    vocab=st.integers(1, 40),
    beta=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    entry_clip=st.sampled_from([None, 0.0, 0.05]),
    token_clip=st.sampled_from([None, 0.05]),
    peak=st.sampled_from([1e-3, 1.0, 20.0, 80.0]),
    masked=st.integers(0, 39),
    chunk_rows=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_random_problems(impl, n, width, vocab, beta, entry_clip, token_clip, peak, masked, chunk_rows, seed):
    p = problem(n, width, vocab, bias=True, gap=1.0, dtype=torch.float32, seed=seed)
    p.weight.mul_(peak / (p.student @ p.weight.T).abs().max().clamp(min=1e-6))
    p.bias[: min(masked, vocab - 1)] = float("-inf")
    p.targets.clamp_(min=min(masked, vocab - 1))
    case = {"beta": beta, "entry_clip": entry_clip, "token_clip": token_clip}
    expected = truth(p, **case).tensors()
    ours = solve(p.to(device_of(impl)), impl=impl, chunk_bytes=10 * vocab * chunk_rows, **case).tensors()
    for name, value in ours.items():
        assert value.isfinite().all(), name
        # The gradient jumps where an entry crosses the clip, so only the continuous outputs are compared then.
        if entry_clip is None or not (name.startswith("d_") or name == "clipped_fraction"):
            scale = max(1.0, peak, expected[name].abs().max().item())
            assert (value - expected[name]).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradient_survives_bf16(impl, beta):
    """Teacher and student nearly agree in self-distillation. bf16 logits leave more error (110 %) than gradient."""
    p = problem(16, 64, 1024, gap=0.01, logit_std=4.0, dtype=torch.bfloat16)
    expected, ours = truth(p, beta=beta).tensors(), solve(p.to(device_of(impl)), impl=impl, beta=beta).tensors()
    for name in ("d_student", "d_weight"):
        assert (ours[name] - expected[name]).norm() < 0.01 * expected[name].norm(), name
    assert (ours["student_logps"] - expected["student_logps"]).abs().max() < 1e-4


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_properties(impl, beta):
    p = problem(19, 16, 67, bias=True, dtype=torch.float32).to(device_of(impl))
    base = solve(p, impl=impl, beta=beta)
    assert (base.output.divergence >= 0).all()
    same = solve(p.__class__(**{**vars(p), "teacher": p.student}), impl=impl, beta=beta)
    assert not same.output.divergence.any()
    assert not same.gradients["student"].any() and not same.gradients["weight"].any()

    order = torch.randperm(67, generator=torch.Generator().manual_seed(0)).to(p.weight.device)
    shuffled = p.__class__(**{**vars(p), "weight": p.weight[order], "bias": p.bias[order], "targets": p.targets * 0})
    shifted = p.__class__(**{**vars(p), "bias": p.bias + 3.0})
    for other in (
        solve(shuffled, impl=impl, beta=beta),
        solve(shifted, impl=impl, beta=beta),
        solve(p, impl=impl, beta=beta, chunk_bytes=10 * 67 * 5),
        solve(p, impl=impl, beta=beta, entry_clip=1e6),
    ):
        torch.testing.assert_close(other.output.divergence, base.output.divergence, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(other.gradients["student"], base.gradients["student"], rtol=1e-4, atol=1e-6)
    clipped = linear_divergence(p.student, p.teacher, p.weight, bias=p.bias, beta=beta, entry_clip=0.01, impl=impl)
    assert (clipped.divergence <= base.output.divergence + 1e-6).all()
    if 0 < beta < 1:
        mirrored = linear_divergence(p.teacher, p.student, p.weight, bias=p.bias, beta=1 - beta, impl=impl)
        torch.testing.assert_close(mirrored.divergence, base.output.divergence, rtol=1e-4, atol=1e-6)
        bernoulli = torch.distributions.Bernoulli(beta).entropy()
        assert (base.output.divergence <= bernoulli.to(p.weight.device)).all()


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_logps_match_the_divergence_op(impl):
    p = problem(11, 16, 67, bias=True, dtype=torch.float32).to(device_of(impl))
    out = linear_divergence(p.student, p.teacher, p.weight, bias=p.bias, targets=p.targets, softcap=5.0, impl=impl)
    case = {"bias": p.bias, "softcap": 5.0, "impl": impl, "chunk_bytes": 67 * 30}
    logps, entropy = linear_logps(p.teacher, p.weight, p.targets, **case)
    torch.testing.assert_close(logps, out.teacher_logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, out.teacher_entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("biased", [False, True])
def test_a_teacher_with_a_head_of_its_own(impl, biased):
    torch.manual_seed(0)
    n, h, v = 7, 5, 11
    student = torch.randn(n, h, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(n, h, dtype=torch.float64)
    weight = torch.randn(v, h, dtype=torch.float64, requires_grad=True)
    own = torch.randn(v, h, dtype=torch.float64, requires_grad=True)
    bias, own_bias = torch.randn(2, v, dtype=torch.float64).unbind() if biased else (None, None)
    if biased:
        bias[3] = own_bias[3] = -torch.inf  # an entry that neither side can sample
    out = linear_divergence(
        student,
        teacher,
        weight,
        bias=bias,
        teacher_weight=own,
        teacher_bias=own_bias,
        token_clip=0.5,
        targets=torch.arange(n) % 3,
        impl=impl,
        chunk_bytes=10 * v * 3,
    )
    ps = torch.log_softmax(torch.nn.functional.linear(student, weight, bias), -1)
    pt = torch.log_softmax(torch.nn.functional.linear(teacher, own, own_bias), -1).detach()
    entries = torch.where(pt.isinf(), 0.0, pt.exp() * (pt - ps).nan_to_num(nan=0.0))
    divergence = entries.sum(-1)
    expected = (divergence * (0.5 / divergence.clamp(min=0.5)).detach()).sum()
    torch.testing.assert_close(out.divergence, divergence.detach())
    torch.testing.assert_close(out.teacher_logps, pt[torch.arange(n), torch.arange(n) % 3])
    grads = torch.autograd.grad(out.loss, (student, weight))
    torch.testing.assert_close(grads, torch.autograd.grad(expected, (student, weight)))
    assert own.grad is None


def test_a_teachers_head_must_fit():
    student = teacher = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="teacher_bias goes with teacher_weight"):
        linear_divergence(student, teacher, torch.zeros(5, 3), teacher_bias=torch.zeros(5))
    with pytest.raises(ValueError, match="like the student's"):
        linear_divergence(
            student, teacher, torch.zeros(5, 3), teacher_weight=torch.zeros(5, 3), teacher_bias=torch.zeros(5)
        )
