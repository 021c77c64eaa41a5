"""The reference against hand-computed numbers and float64 finite differences."""

import pytest
import torch
from ops_helpers import problem
from torch.autograd.gradcheck import GradcheckError

from trl_selfdistill.ops import linear_divergence, linear_logps

P_S, P_T = [0.6, 0.3, 0.08, 0.02], [0.15, 0.75, 0.08, 0.02]
IMPLS = ("reference", "torch")


def on_logits(impl: str, **settings):
    """The ops on given distributions: hidden states are the log-probabilities, the head is the identity."""
    student = torch.tensor([P_S], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([P_T], dtype=torch.float64).log()
    out = linear_divergence(student, teacher, torch.eye(4, dtype=torch.float64), impl=impl, **settings)
    return out, torch.autograd.grad(out.loss, student)[0][0]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"beta": 0.0}, 0.479274),
        ({"beta": 1.0}, 0.556889),
        ({"beta": 0.5}, 0.122090),
        ({"beta": 0.0, "entry_clip": 0.05}, -0.157944),
    ],
)
def test_divergence_vectors(impl, settings, value):
    out, _ = on_logits(impl, **settings)
    assert out.divergence.item() == pytest.approx(value, abs=1e-6)
    assert out.loss.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_vectors(impl):
    _, plain = on_logits(impl)
    torch.testing.assert_close(-plain, torch.tensor([-0.45, 0.45, 0.0, 0.0], dtype=torch.float64))
    out, clipped = on_logits(impl, entry_clip=0.05)
    torch.testing.assert_close(-clipped, torch.tensor([0.0, -0.075, 0.06, 0.015], dtype=torch.float64))
    assert out.clipped_fraction.item() == pytest.approx(0.75)


@pytest.mark.parametrize("impl", IMPLS)
def test_token_clip_bounds_the_weight_and_keeps_the_direction(impl):
    plain, direction = on_logits(impl)
    clipped, gradient = on_logits(impl, token_clip=0.05)
    assert clipped.loss.item() == pytest.approx(0.05)
    assert clipped.divergence.item() == pytest.approx(plain.divergence.item())
    torch.testing.assert_close(gradient, direction * 0.05 / plain.divergence)
    loose, same = on_logits(impl, token_clip=10.0)
    assert loose.loss.item() == pytest.approx(plain.loss.item())
    torch.testing.assert_close(same, direction)


@pytest.mark.parametrize("impl", IMPLS)
def test_log_probs_and_entropies(impl):
    target = torch.tensor([1])
    out, _ = on_logits(impl, targets=target)
    assert out.student_logps is not None and out.teacher_logps is not None
    assert out.student_logps.exp().item() == pytest.approx(0.3)
    assert out.teacher_logps.exp().item() == pytest.approx(0.75)
    logp, entropy = linear_logps(
        torch.tensor([P_T], dtype=torch.float64).log(), torch.eye(4, dtype=torch.float64), target, impl=impl
    )
    assert logp.item() == pytest.approx(out.teacher_logps.item())
    assert entropy.item() == pytest.approx(out.teacher_entropy.item())
    assert entropy.item() == pytest.approx(-sum(p * torch.tensor(p).log().item() for p in P_T), abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("softcap", [None, 6.0])
@pytest.mark.parametrize("entry_clip", [None, 0.02])
def test_reference_gradcheck(beta, softcap, entry_clip):
    p = problem(3, 5, 11, bias=True, gap=1.0)

    def loss(hidden):
        return linear_divergence(
            hidden,
            p.teacher,
            p.weight,
            bias=p.bias,
            beta=beta,
            entry_clip=entry_clip,
            softcap=softcap,
            temperature=1.3,
            logit_scale=0.7,
            token_weights=p.token_weights,
            impl="reference",
        ).loss

    assert torch.autograd.gradcheck(loss, p.student.clone().requires_grad_())


def test_gradcheck_through_the_shared_head_fails():
    """Finite differences move the teacher as well; the op must not. Guards the stop-gradient of the teacher."""
    p = problem(3, 5, 11, gap=1.0)

    def loss(weight):
        return linear_divergence(p.student, p.teacher, weight, impl="reference").loss

    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(loss, p.weight.clone().requires_grad_())


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_agrees_with_trl(beta):
    """TRL's chunked divergence has no clip, no targets and no teacher entropy, but the same convention for beta."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    p = problem(17, 24, 101, dtype=torch.float32)
    out = linear_divergence(p.student, p.teacher, p.weight, beta=beta, temperature=1.3)
    theirs, entropy = ChunkedDivergenceFunction.apply(p.student, p.weight, None, p.teacher, p.weight, None, beta, 1.3)
    torch.testing.assert_close(out.divergence, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.student_entropy, entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        {"beta": -0.1},
        {"beta": 1.5},
        {"beta": float("nan")},
        {"entry_clip": -1.0},
        {"token_clip": 0.0},
        {"temperature": 0.0},
        {"softcap": -3.0},
        {"logit_scale": 0.0},
        {"impl": "cuda"},
        {"chunk_bytes": 0},
        {"impl": "liger"} if not torch.cuda.is_available() else {"impl": "Liger"},
    ],
)
def test_bad_arguments(bad, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    p = problem(3, 4, 5)
    with pytest.raises(ValueError):
        linear_divergence(p.student, p.teacher, p.weight, **bad)


def test_bad_shapes_name_the_way_out():
    from trl_selfdistill.ops.checks import check_arguments

    p = problem(3, 4, 5)
    with pytest.raises(ValueError, match="output_head"):
        check_arguments("torch", None, torch.empty(0), None, {}, p.student)
    with pytest.raises(ValueError, match="same tokens"):
        check_arguments("torch", None, p.weight, None, {}, p.student, p.teacher[:2])
    with pytest.raises(ValueError, match="bias"):
        check_arguments("torch", None, p.weight, p.weight[0], {}, p.student)
    with pytest.raises(ValueError, match="targets"):
        check_arguments("torch", None, p.weight, None, {"targets": p.targets[:1]}, p.student)
    for shape in ((1,), (2,), (4,), (3, 1)):
        with pytest.raises(ValueError, match=r"token_weights must be \(3,\)"):
            check_arguments("torch", None, p.weight, None, {"token_weights": torch.ones(shape)}, p.student)
