import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_selfdistill.maths import EntropyGate, exact_median, log_ratio, phi, summary

PHI = [
    (-50, -0.346574),
    (-5, -0.343216),
    (-1, -0.189943),
    (0, 0.0),
    (0.5, 0.140465),
    (1, 0.310057),
    (5, 2.156784),
    (20, 9.653426),
]


@pytest.mark.parametrize(("u", "expected"), PHI)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_phi_vectors(u, expected, dtype):
    value = phi(torch.tensor(u, dtype=dtype))
    assert value.item() == pytest.approx(expected, abs=6e-7)
    assert value.dtype == torch.promote_types(dtype, torch.float32)


def test_phi_slope_at_zero_and_bounds():
    u = torch.linspace(-100, 100, 2001, dtype=torch.float64, requires_grad=True)
    values = phi(u)
    (slope,) = torch.autograd.grad(values.sum(), u)
    torch.testing.assert_close(slope, torch.sigmoid(u.detach()) / 2)
    assert values.min() >= -0.5 * math.log(2)
    assert torch.equal(values.sign(), u.sign())


def test_log_ratio_is_teacher_minus_student_and_detached():
    student = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    u = log_ratio(student, torch.tensor([[-3.0, -0.5]]))
    assert u.tolist() == [[-2.0, 1.5]]
    assert not u.requires_grad


def test_log_ratio_does_not_round_to_the_inputs_precision():
    student, teacher = torch.tensor([[-1.0]], dtype=torch.bfloat16), torch.tensor([[-1.0078125]], dtype=torch.bfloat16)
    assert log_ratio(student, teacher).item() == pytest.approx(-0.0078125)


def run(gate: EntropyGate, entropies: list[float]) -> list[bool]:
    """Whether each batch got the term."""
    active = []
    for entropy in entropies:
        gate = gate.step(entropy)
        active.append(gate.active)
    return active


def test_gate_follows_a_scripted_sequence():
    gate = EntropyGate(warmup=5, close_ratio=0.93)
    warmup = [1.0, 0.8, 1.2, 1.1, 0.9]  # H_warm = 1.0, threshold 0.93
    after = [0.95, 0.93, 0.92, 0.95, 0.99, 1.0, 0.94, 0.5, 1.3]
    expected = [True, True, False, False, False, True, True, False, True]
    assert run(gate, warmup + after) == [False] * 5 + expected


def test_gate_warm_entropy_of_an_even_number_of_batches_is_the_mean_of_the_middle_two():
    gate = EntropyGate(warmup=4)
    for entropy in (1.0, 4.0, 2.0, 3.0):
        assert gate.warm_entropy is None
        gate = gate.step(entropy)
    assert gate.warm_entropy == 2.5


def straight_line_model(entropies: list[float], warmup: int, ratio: float) -> list[bool]:
    """Eq. 7 of AntiSD, written down as it stands in the paper, one batch after another."""
    seen: list[float] = []
    g, out = 1, []
    for h in entropies:
        if not math.isfinite(h):
            out.append(out[-1] if out else False)
            continue
        if len(seen) < warmup:
            seen.append(h)
            out.append(False)
            continue
        ordered = sorted(seen)
        middle = len(ordered) // 2
        h_warm = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        if g == 0 and h >= h_warm:
            g = 1
        elif g == 1 and h < ratio * h_warm:
            g = 0
        out.append(bool(g))
    return out


entropy_values = st.one_of(st.floats(0, 3), st.sampled_from([math.nan, math.inf]))


@given(st.lists(entropy_values, max_size=60), st.integers(1, 8), st.floats(0.5, 1.0))
def test_gate_equals_a_straight_line_model(entropies, warmup, ratio):
    assert run(EntropyGate(warmup=warmup, close_ratio=ratio), entropies) == straight_line_model(
        entropies, warmup, ratio
    )


@given(st.lists(entropy_values, max_size=30), st.integers(1, 6), st.integers(0, 30))
def test_gate_restored_from_json_goes_on_alike(entropies, warmup, cut):
    gate = EntropyGate(warmup=warmup)
    for entropy in entropies[:cut]:
        gate = gate.step(entropy)
    restored = EntropyGate(**json.loads(json.dumps(asdict(gate))))
    assert restored == gate
    assert run(restored, entropies[cut:]) == run(gate, entropies[cut:])


@pytest.mark.parametrize("bad", [{"warmup": 0}, {"close_ratio": -0.1}, {"close_ratio": 1.5}])
def test_gate_refuses_settings_that_mean_nothing(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        EntropyGate(**bad)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_median_equals_the_standard_library(values):
    from statistics import median

    assert exact_median(torch.tensor(values)) == pytest.approx(median(values))


def test_statistics_of_nothing_are_nan():
    assert math.isnan(exact_median(torch.tensor([])))
    assert all(math.isnan(v) for v in summary(torch.tensor([])).values())
