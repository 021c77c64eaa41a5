import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_selfdistill.algorithms.rlrt import RLRTConfig, rlrt_advantages, rlrt_weights
from trl_selfdistill.maths import log_ratio

VECTORS = [
    # A, s, t, strength, clip -> w, A_t
    (1.2, -1.0, -2.0, 0.5, 1.0, 2.718282, 1.8),
    (1.2, -2.0, -1.0, 0.5, 1.0, 0.367879, 0.820728),
    (1.2, -1.0, -2.0, 0.5, 0.2, 2.718282, 1.32),
    (1.2, -1.0, -1.3, 0.5, 0.5, 1.349859, 1.409915),
    (0.0, -1.0, -2.0, 0.5, 1.0, 1.0, 0.0),
    (-0.8, -1.0, -2.0, 0.5, 0.2, 0.367879, -0.72),
]


def one(advantage: float, s: float, t: float, *, correct: bool = True, **kwargs: float) -> float:
    u = log_ratio(torch.tensor([[s]], dtype=torch.float64), torch.tensor([[t]], dtype=torch.float64))
    a = torch.tensor([advantage], dtype=torch.float64)
    return rlrt_advantages(a, u, torch.tensor([correct]), **kwargs).item()


@pytest.mark.parametrize(("advantage", "s", "t", "strength", "clip", "weight", "expected"), VECTORS)
def test_vectors(advantage, s, t, strength, clip, weight, expected):
    assert one(advantage, s, t, strength=strength, clip=clip) == pytest.approx(expected, abs=1e-6)
    u = torch.tensor([[t - s]], dtype=torch.float64)
    assert rlrt_weights(torch.tensor([advantage], dtype=torch.float64), u).item() == pytest.approx(weight, abs=1e-6)


def test_wrong_rollouts_stay_grpo():
    assert one(1.2, -1.0, -2.0, correct=False, strength=0.5, clip=1.0) == 1.2


batches = st.integers(1, 5).flatmap(
    lambda rows: st.tuples(
        st.lists(st.floats(-5, 5), min_size=rows, max_size=rows),
        st.lists(st.lists(st.floats(-200, 200), min_size=3, max_size=3), min_size=rows, max_size=rows),
        st.lists(st.booleans(), min_size=rows, max_size=rows),
    )
)


@given(batches, st.floats(0, 1), st.floats(0.01, 1))
def test_the_sign_never_flips_and_the_size_stays_in_range(batch, strength, clip):
    a, u, correct = torch.tensor(batch[0]), torch.tensor(batch[1]), torch.tensor(batch[2])
    shaped = rlrt_advantages(a, u, correct, strength=strength, clip=clip)
    assert shaped.isfinite().all()
    assert (shaped * a.unsqueeze(1) >= 0).all()
    size, bound = shaped.abs(), a.abs().unsqueeze(1)
    assert (size <= bound * (1 + strength * clip) * (1 + 1e-6)).all()
    assert (size >= bound * (1 - strength * clip) * (1 - 1e-6) - 1e-30).all()
    assert torch.equal(shaped[~correct], a[~correct].unsqueeze(1).expand(-1, 3))


@given(batches, st.floats(0.01, 1))
def test_strength_zero_and_a_teacher_that_agrees_are_exactly_grpo(batch, clip):
    a, u, correct = torch.tensor(batch[0]), torch.tensor(batch[1]), torch.tensor(batch[2])
    plain = a.unsqueeze(1).expand_as(u)
    assert torch.equal(rlrt_advantages(a, u, correct, strength=0.0, clip=clip), plain)
    assert torch.equal(rlrt_advantages(a, torch.zeros_like(u), correct, strength=1.0, clip=clip), plain)


def test_no_gradient_reaches_the_weights():
    u = torch.randn(2, 3, requires_grad=True)
    a = torch.randn(2, requires_grad=True)
    assert not rlrt_advantages(a, u, torch.tensor([True, False]), strength=0.5, clip=1.0).requires_grad


def test_shapes_are_checked():
    with pytest.raises(Exception, match=r"log_ratio|shape|type"):
        rlrt_advantages(torch.zeros(2), torch.zeros(3, 4), torch.ones(2, dtype=torch.bool), strength=0.5, clip=1.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"rlrt_strength": 1.5},
        {"rlrt_strength": -0.1},
        {"rlrt_clip": 0.0},
        {"rlrt_clip": 1.5},
        {"correctness_threshold": float("nan")},
        {"teacher_chat_template_kwargs": [1]},
    ],
)
def test_config_names_the_bad_field(bad, tmp_path):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RLRTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **bad)
