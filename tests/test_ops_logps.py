"""The gradients of `linear_logps` against float64, finite differences and TRL's kernel, and what they cost."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ops_helpers import GRADIENTS, IMPLS, INTERPRETED, CountProducts, Problem, device_of, problem

from trl_selfdistill.ops import linear_logps

ALL = ["reference", *IMPLS]
PHASES = [Phase.explicit, Phase.generate] if INTERPRETED else list(Phase)
FROZEN = ("student",)
# Relative to the largest entry of the truth, in units of the rounding of what is returned.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 8e-3}


def scored(p: Problem, *, trainable=GRADIENTS, op=linear_logps, upstream=(1.0, 1.0), **case) -> dict[str, Any]:
    """Outputs and gradients in float64 for per-token upstream gradients of random size, times `upstream`."""
    leaves = {
        k: None if v is None else v.detach().clone().requires_grad_(k in trainable)
        for k, v in {"student": p.student, "weight": p.weight, "bias": p.bias}.items()
    }
    logps, entropy = op(leaves["student"], leaves["weight"], p.targets, bias=leaves["bias"], **case)
    g = torch.Generator().manual_seed(1)
    a, b = (
        s * torch.randn(len(logps), generator=g, dtype=torch.float64).to(logps)
        for s in upstream
    )  # fmt: skip
    loss = (a * logps).sum() + (b * entropy).sum()
    loss.backward()
    every = {"logps": logps, "entropy": entropy} | {
        f"d_{k}": v.grad for k, v in leaves.items() if v is not None and v.grad is not None
    }
    return {k: v.detach().double().cpu() for k, v in every.items()}


def truth(p: Problem, **case) -> dict[str, Any]:
    return scored(p.to("cpu", torch.float64), impl="reference", **case)


def assert_near(ours: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name].isfinite().all(), name
        allowed = tolerance * max(1.0, value.abs().max().item())
        error = (ours[name] - value).abs().max().item()
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


@pytest.mark.parametrize("softcap", [None, 6.0])
def test_reference_gradcheck(softcap):
    p = problem(3, 5, 11, bias=True)

    def both(hidden, weight, bias):
        case = {"softcap": softcap, "temperature": 1.3, "logit_scale": 0.7, "impl": "reference"}
        return linear_logps(hidden, weight, p.targets, bias=bias, **case)

    assert torch.autograd.gradcheck(both, [t.requires_grad_() for t in (p.student, p.weight, p.bias)])


@pytest.mark.parametrize("trainable", [GRADIENTS, FROZEN, ("weight",), ("bias",), ("student", "bias")], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=5 if INTERPRETED else 25,
    derandomize=True,
    phases=PHASES,
)
@given(
    n=st.integers(1, 9),
    width=st.integers(1, 9),
    vocab=st.integers(1, 40),
    softcap=st.sampled_from([None, 5.0]),
    temperature=st.sampled_from([1.0, 0.6]),
    logit_scale=st.sampled_from([1.0, 0.3]),
    masked=st.integers(0, 39),
    chunk_rows=st.integers(1, 10),
    entropy_grad=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_the_reference(
    impl, trainable, n, width, vocab, softcap, temperature, logit_scale, masked, chunk_rows, entropy_grad, seed
):
    dtype = torch.float64 if impl == "torch" else torch.float32
    p = problem(n, width, vocab, bias=True, logit_std=2.0, dtype=dtype, seed=seed)
    p.bias[: min(masked, vocab - 1)] = float("-inf")
    p.targets.clamp_(min=min(masked, vocab - 1))
    case = {"softcap": softcap, "temperature": temperature, "logit_scale": logit_scale, "entropy_grad": entropy_grad}
    expected = truth(p, trainable=trainable, **case)
    case |= {"impl": impl, "chunk_bytes": 10 * vocab * chunk_rows}
    assert_near(scored(p.to(device_of(impl)), trainable=trainable, **case), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("trainable", [GRADIENTS, FROZEN], ids=len)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_accuracy_of_the_gradients(impl, dtype, trainable):
    """Several chunks; logits of standard deviation 4, as a language model has them."""
    p = problem(23, 17, 101, bias=True, dtype=dtype)
    case = {"softcap": 9.0, "temperature": 1.2}
    ours = scored(p.to(device_of(impl)), trainable=trainable, impl=impl, chunk_bytes=50 * 101, **case)
    assert_near(ours, truth(p, trainable=trainable, **case), TOLERANCE[dtype])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_hundred_times_nearer_than_logits_in_bf16(impl):
    """TRL's kernel rounds its logits to the dtype of the model; the truth is float64 on the same bf16 operands."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    p = problem(16, 64, 512, dtype=torch.bfloat16)
    expected = truth(p)
    theirs, *_ = ChunkedLogProbFunction.apply(p.student, p.weight, None, p.targets, 1.0, 32768, None, 1.0, ("entropy",))
    ours = scored(p.to(device_of(impl)), impl=impl)
    mine, other = ((x.double() - expected["logps"]).abs() for x in (ours["logps"], theirs))
    assert 100 * mine.mean() < other.mean() and 100 * mine.max() < other.max()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("trainable", [GRADIENTS, FROZEN], ids=len)
def test_agrees_with_trl_in_fp32(impl, trainable):
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def theirs(hidden, weight, targets, *, bias):
        return ChunkedLogProbFunction.apply(hidden, weight, bias, targets, 1.3, 64, 7.0, 0.8, ("entropy",))[:2]

    p = problem(17, 24, 101, bias=True, dtype=torch.float32)
    case = {"temperature": 1.3, "softcap": 7.0, "logit_scale": 0.8}
    ours = scored(p.to(device_of(impl)), impl=impl, trainable=trainable, **case)
    assert_near(ours, scored(p, op=theirs, trainable=trainable), 1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_matrix_products(impl):
    """Two chunks of tokens; per chunk: 1 without gradient, 2 (3 with entropy) frozen, 4 trainable, 3 the head alone."""
    p = problem(6, 4, 7, bias=True, dtype=torch.float32).to(device_of(impl))

    def count(*trainable: str, on=True, entropy_grad=True):
        with torch.set_grad_enabled(on), CountProducts() as products:
            for name in GRADIENTS:
                getattr(p, name).requires_grad_(name in trainable).grad = None
            case = {"impl": impl, "chunk_bytes": 10 * 7 * 3, "entropy_grad": entropy_grad}
            outputs = linear_logps(p.student, p.weight, p.targets, bias=p.bias, **case)
            loss = sum(x.sum() for x in outputs if x.requires_grad)
            if isinstance(loss, torch.Tensor):
                loss.backward()
        assert all((getattr(p, name).grad is not None) == (on and name in trainable) for name in GRADIENTS)
        return products.count / 2

    assert count() == count(*GRADIENTS, on=False) == 1
    assert count("student", entropy_grad=False) == 2
    assert count("student") == 3
    assert count("student", "weight") == count("student", "weight", entropy_grad=False) == 4
    assert count("weight") == 3
    assert count("bias") == 2


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("trainable", [GRADIENTS, FROZEN], ids=len)
def test_what_carries_a_gradient(impl, trainable):
    p = problem(5, 4, 7, dtype=torch.float32).to(device_of(impl))
    for name in trainable[:2]:
        getattr(p, name).requires_grad_()
    logps, entropy = linear_logps(p.student, p.weight, p.targets, impl=impl)
    assert logps.requires_grad and entropy.requires_grad
    logps, entropy = linear_logps(p.student, p.weight, p.targets, impl=impl, entropy_grad=False)
    assert logps.requires_grad and not entropy.requires_grad
    with torch.no_grad():
        assert not any(x.requires_grad for x in linear_logps(p.student, p.weight, p.targets, impl=impl))


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("trainable", [GRADIENTS, FROZEN], ids=len)
def test_no_tokens_are_a_differentiable_zero(impl, trainable):
    """As a micro-batch whose labels are all masked gives it: scattered into (B, T), summed, sent backward."""
    p = problem(4, 4, 7, bias=True, dtype=torch.float32).to(device_of(impl))
    for name in trainable:
        getattr(p, name).requires_grad_()
    mask = torch.zeros(2, 2, dtype=torch.bool, device=p.weight.device)
    hidden = p.student.view(2, 2, 4)
    logps, entropy = linear_logps(hidden[mask], p.weight, p.targets[:0], bias=p.bias, impl=impl)
    loss = sum(x.new_zeros(mask.shape).masked_scatter(mask, x).sum() for x in (logps, entropy))
    assert loss == 0
    loss.backward()
    for name in trainable:
        grad = getattr(p, name).grad
        assert grad is not None and not grad.any(), name


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("trainable", [GRADIENTS, FROZEN], ids=len)
def test_either_output_alone_and_repeated_backward(impl, trainable):
    p = problem(7, 4, 9, bias=True, dtype=torch.float32).to(device_of(impl))
    both = scored(p, impl=impl, trainable=trainable)
    alone = [scored(p, impl=impl, trainable=trainable, upstream=u) for u in ((1.0, 0.0), (0.0, 1.0))]
    for name in (f"d_{t}" for t in trainable):
        torch.testing.assert_close(alone[0][name] + alone[1][name], both[name], rtol=1e-4, atol=1e-5)
    student = p.student.clone().requires_grad_()
    logps, entropy = linear_logps(student, p.weight.requires_grad_(len(trainable) > 1), p.targets, impl=impl)
    (once,) = torch.autograd.grad(entropy.sum(), student, retain_graph=True)
    for _ in range(2):
        entropy.sum().backward(retain_graph=True)
    torch.testing.assert_close(student.grad, 2 * once)
    assert torch.autograd.grad(logps.sum(), student)[0].any()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("trainable", [GRADIENTS, FROZEN], ids=len)
def test_a_loss_scale_comes_before_the_cast_to_fp16(impl, trainable):
    """Gradients of 1e-9 are 0 in fp16; times 2^16 they are not."""
    p = problem(7, 4, 9, bias=True, dtype=torch.float16).to(device_of(impl))
    small = scored(p, impl=impl, trainable=trainable, upstream=(1e-9 * 2**16, 1e-9 * 2**16))
    expected = scored(p.to(torch.float32), impl="reference", trainable=trainable)
    for name in (f"d_{t}" for t in trainable):
        torch.testing.assert_close(small[name] / (1e-9 * 2**16), expected[name], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("trainable", [GRADIENTS, FROZEN], ids=len)
def test_the_same_call_gives_the_same_bits(impl, trainable):
    p = problem(9, 16, 67, bias=True, dtype=torch.float32).to(device_of(impl))
    first, second = (scored(p, impl=impl, trainable=trainable, chunk_bytes=10 * 67 * 4) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("trainable", [GRADIENTS, FROZEN], ids=len)
def test_saves_no_vocabulary_row_per_token(trainable):
    """What autograd keeps between forward and backward: (N, H) twice, or the inputs."""
    p = problem(12, 4, 50, dtype=torch.float32)
    for name in trainable[:2]:
        getattr(p, name).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        linear_logps(p.student, p.weight, p.targets, impl="torch")
    allowed = {(12, 4), (50, 4), (12,)} if len(trainable) > 1 else {(12, 4)}
    assert set(kept) == allowed and len(kept) <= 3


def test_in_a_compiled_caller():
    p = problem(5, 4, 7, dtype=torch.float32)
    student = p.student.clone().requires_grad_()

    def loss(hidden):
        logps, entropy = linear_logps(2 * hidden, p.weight, p.targets, impl="torch")
        return (logps - 0.1 * entropy).sum()

    torch.compile(loss, backend="eager")(student).backward()
    (expected,) = torch.autograd.grad(loss(student), student)
    torch.testing.assert_close(student.grad, expected)
