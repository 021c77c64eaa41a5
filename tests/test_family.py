"""The formulas of the family: vectors worked out by hand or from the papers, bounds, and what must not happen."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_selfdistill.algorithms.opsa import OPSAConfig, opsa_advantages
from trl_selfdistill.algorithms.opsd import OPSDConfig
from trl_selfdistill.algorithms.power_opd import PowerOPDConfig, power_opd_rewards
from trl_selfdistill.algorithms.rlcsd import RLCSDConfig, rlcsd_advantages
from trl_selfdistill.algorithms.rlsd import RLSDConfig, rlsd_advantages, rlsd_strength, rlsd_weights
from trl_selfdistill.algorithms.sdpo import SDPOConfig, sdpo_weights
from trl_selfdistill.maths import log_ratio, mean_logps, position_weights, skip_weights

EXACT = {"dtype": torch.float64}


@pytest.mark.parametrize(
    ("advantage", "s", "t", "weight", "expected"),
    [(1.2, -1.0, -2.0, 0.367879, 1.08), (-0.8, -1.0, -2.0, 2.718282, -0.88), (0.0, -1.0, -2.0, 1.0, 0.0)],
)
def test_rlsd_vectors(advantage, s, t, weight, expected):
    a, u = torch.tensor([advantage], **EXACT), log_ratio(torch.tensor([[s]], **EXACT), torch.tensor([[t]], **EXACT))
    assert rlsd_weights(a, u).item() == pytest.approx(weight, abs=1e-6)
    assert rlsd_advantages(a, u, strength=0.5, clip=0.2).item() == pytest.approx(expected, abs=1e-6)


def test_rlsds_strength_falls_in_a_straight_line_and_stays_at_zero():
    falling = [rlsd_strength(step, start=0.5, decay_steps=60) for step in (0, 15, 30, 60, 61, 1000)]
    assert falling == [0.5, 0.375, 0.25, 0.0, 0.0, 0.0]
    assert rlsd_strength(1000, start=0.5, decay_steps=0) == 0.5


RLCSD = {"beta": 1.0, "strength": 0.5, "temperature": 0.02, "threshold": 0.02}


def contrasted(advantage: float, right: float, wrong: list[float], **settings: float) -> float:
    hints = torch.tensor([[[logp] for logp in wrong]], **EXACT)
    a = torch.tensor([advantage])
    return rlcsd_advantages(a, torch.tensor([[right]], **EXACT), hints, **{**RLCSD, **settings}).item()


@pytest.mark.parametrize(
    ("wrong", "contrast", "residual"), [([-1.2, -1.5], 0.338792, 0.5), ([-1.0, -1.01], 0.004988, 0.122166)]
)
def test_rlcsd_vectors(wrong, contrast, residual):
    e = -1.0 - mean_logps(torch.tensor([[[logp] for logp in wrong]], **EXACT)).item()
    assert e == pytest.approx(contrast, abs=1e-6)
    assert contrasted(3.0, -1.0, wrong) == pytest.approx(3.0 + residual, abs=1e-6)
    assert contrasted(-3.0, -1.0, wrong) == pytest.approx(-3.0 + residual, abs=1e-6)


def test_rlcsds_bounds():
    assert contrasted(3.0, -1.0, [-2.0], strength=50.0) == 5.0  # the residual ends at 2
    assert contrasted(3.0, -2.0, [-1.0], strength=50.0) == 1.0
    assert contrasted(1.0, -2.0, [-1.0], strength=50.0) == 0.0  # and never turns the sign
    assert contrasted(-1.0, -1.0, [-2.0], strength=50.0) == 0.0
    assert contrasted(0.0, -1.0, [-2.0]) == 0.0
    assert contrasted(3.0, -1.0, [-1.0005]) == 3.0  # below the threshold
    assert contrasted(3.0, -1.0, [-2.0], strength=0.0) == 3.0


def test_rlcsd_leaves_out_the_hints_that_a_row_lacks():
    nan = math.nan
    assert contrasted(3.0, -1.0, [-1.2, nan, -1.5, nan]) == contrasted(3.0, -1.0, [-1.2, -1.5])
    assert contrasted(3.0, -1.0, [nan, nan]) == 3.0
    assert contrasted(3.0, nan, [-1.2]) == 3.0


@pytest.mark.parametrize(
    ("s", "t", "expected"), [(-1.0, -0.1, 0.599793), (-0.1, -1.0, -0.599793), (0.0, -200.0, -1.0), (-3.0, -3.0, 0.0)]
)
def test_power_opd_vectors(s, t, expected):
    student, teacher = torch.tensor([[s]], **EXACT), torch.tensor([[t]], **EXACT)
    assert power_opd_rewards(student, teacher, alpha=5.0).item() == pytest.approx(expected, abs=1e-6)


def test_power_opd_tends_to_the_log_ratio():
    student, teacher = torch.tensor([[-1.0, -2.0]], **EXACT), torch.tensor([[-0.1, -2.7]], **EXACT)
    close = power_opd_rewards(student, teacher, alpha=1e-6) / 1e-6
    torch.testing.assert_close(close, teacher - student, atol=1e-5, rtol=0)


def test_sdpos_ratio():
    s, old = torch.tensor([[-1.0, -1.0, -1.0, -0.1]]), torch.tensor([[-1.0, -0.5, -1.4, -90.0]])
    weights = sdpo_weights(s, old, clip=2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.0, math.exp(-0.5), math.exp(0.4), 2.0]]))


def test_opsa_pushes_the_least_likely_fifth_by_its_entropy():
    logps = -torch.arange(1.0, 11.0).view(2, 5)  # -10 is the least likely; the last is padding
    entropy = torch.tensor([[0.0] * 5, [0.0, 0.4, 0.1, 0.3, 9.0]])
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 4] = False
    shaped = opsa_advantages(logps, entropy, mask, fraction=0.4)  # 9 tokens: floor(3.6) = 3
    expected = torch.tensor([[0.0] * 5, [0.0, -1.0, -0.5, -0.5 - 0.5 * 2 / 3, 0.0]])
    torch.testing.assert_close(shaped, expected)
    assert (opsa_advantages(logps, torch.ones(2, 5), mask, fraction=0.4) == -1.0).sum() == 3
    assert (opsa_advantages(logps, entropy, mask, fraction=0.01) < 0).sum() == 1
    assert not opsa_advantages(logps, entropy, mask & False, fraction=0.2).any()


def test_weights_by_place():
    mask = torch.tensor([[True, True, True, True, False], [False, True, False, True, False]])
    weights = position_weights(mask)
    for row, places, n in ((0, (0, 1, 2, 3), 4), (1, (1, 3), 2)):
        for k, t in enumerate(places, start=1):
            x = (k - 0.5) / n
            assert weights[row, t].item() == pytest.approx(0.25 + 0.75 / (1 + math.exp(-(x - 0.3) / 0.1)), abs=1e-6)
    assert skip_weights(mask, tokens=1)[mask].tolist() == [0, 1, 1, 1, 0, 1]
    assert skip_weights(mask, tokens=0)[mask].all()


logps = st.lists(st.lists(st.floats(-200, 0), min_size=3, max_size=3), min_size=2, max_size=2)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=2), logps, logps, logps, st.floats(0, 1))
def test_signs_and_sizes_for_all_log_probabilities(advantages, student, right, wrong, strength):
    a, s, t, w = (torch.tensor(values) for values in (advantages, student, right, wrong))
    plain = a.unsqueeze(1).expand_as(s)
    shaped = rlsd_advantages(a, log_ratio(s, t), strength=strength, clip=0.2)
    assert ((shaped - plain).abs() <= 0.2 * strength * plain.abs() + 1e-6).all()
    assert torch.equal(rlsd_advantages(a, log_ratio(s, t), strength=0.0, clip=0.2), plain)
    shaped = rlcsd_advantages(a, t, w.unsqueeze(1), **{**RLCSD, "strength": strength})
    assert (shaped * plain >= 0).all()
    assert ((shaped - plain).abs() <= strength + 1e-6).all()
    assert torch.equal(rlcsd_advantages(a, t, w.unsqueeze(1), **{**RLCSD, "strength": 0.0}), plain)
    assert torch.equal(rlcsd_advantages(a, t, t.unsqueeze(1), **RLCSD), plain)
    rewards = power_opd_rewards(s, t, alpha=5.0)
    assert rewards.abs().max() <= 1.0
    assert (rewards * log_ratio(s, t) >= 0).all()
    assert sdpo_weights(s, t, clip=2.0).max() <= 2.0


def test_no_gradient_reaches_what_is_made():
    a, s, t = (torch.randn(shape, requires_grad=True) for shape in ((2,), (2, 3), (2, 3)))
    made = (
        rlsd_advantages(a, t - s, strength=0.5, clip=0.2),
        rlcsd_advantages(a, s, t.unsqueeze(1), **RLCSD),
        power_opd_rewards(s, t, alpha=5.0),
        sdpo_weights(s, t, clip=2.0),
        opsa_advantages(s, t, torch.ones(2, 3, dtype=torch.bool), fraction=0.2),
    )
    assert not any(values.requires_grad for values in made)


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        (RLSDConfig, {"rlsd_strength": 1.5}),
        (RLSDConfig, {"rlsd_clip": 0.0}),
        (RLSDConfig, {"rlsd_decay_steps": -1}),
        (RLCSDConfig, {"rlcsd_strength": -0.1}),
        (RLCSDConfig, {"rlcsd_beta": -0.1}),
        (RLCSDConfig, {"rlcsd_threshold": float("nan")}),
        (RLCSDConfig, {"rlcsd_temperature": 0.0}),
        (RLCSDConfig, {"rlcsd_wrong_peers": 5}),
        (RLCSDConfig, {"num_generations": 2}),
        (RLCSDConfig, {"num_generations": 2, "context": "own_peer"}),
        (OPSDConfig, {"opsd_skip_tokens": 8, "max_completion_length": 8}),
        (PowerOPDConfig, {"power_opd_alpha": 0.0}),
        (PowerOPDConfig, {"power_opd_strength": -1.0}),
        (SDPOConfig, {"sdpo_beta": 1.5}),
        (SDPOConfig, {"sdpo_ratio_clip": 0.5}),
        (SDPOConfig, {"epsilon": 0.1}),
        (OPSAConfig, {"opsa_fraction": 0.0}),
    ],
)
def test_configs_name_the_bad_field(config, bad, tmp_path):
    with pytest.raises(ValueError, match=next(iter(bad))):
        config(output_dir=str(tmp_path), use_cpu=True, bf16=False, **bad)


def test_rlcsd_takes_two_rollouts_where_the_right_hint_is_no_peer(tmp_path):
    config = RLCSDConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=2, context="gold")
    assert config.num_generations == 2


def test_the_papers_defaults(tmp_path):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    rlsd, rlcsd, sdpo = (config(**common) for config in (RLSDConfig, RLCSDConfig, SDPOConfig))
    assert (rlsd.context, rlsd.rlsd_strength, rlsd.rlsd_clip, rlsd.rlsd_decay_steps) == ("gold", 0.5, 0.2, 60)
    assert (rlsd.teacher_model_kind, rlsd.teacher_update_rate, rlsd.teacher_sync_steps) == ("ema", 1.0, 20)
    assert (rlcsd.context, rlcsd.teacher_model_kind, rlcsd.teacher_sync_steps) == ("peer", "ema", 10)
    assert (sdpo.teacher_model_kind, sdpo.teacher_update_rate, sdpo.teacher_sync_steps) == ("ema", 0.05, 1)
    assert (sdpo.context, sdpo.context_thinking, sdpo.sdpo_beta) == ("peer_else_feedback", "remove", 0.5)


def test_a_full_vocabulary_divergence_is_a_loss_and_never_an_advantage():
    """Its mean over the vocabulary is the same for every token that could be drawn, so as an advantage it teaches
    nothing, while its own gradient, and that of the sampled token's log-ratio, is not zero."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, generator=generator).requires_grad_()
    teacher = torch.randn(7, dtype=torch.float64, generator=generator).log_softmax(0)
    student = logits.log_softmax(0)
    divergence = (student.exp() * (student - teacher)).sum()

    def expected_gradient(advantages: torch.Tensor) -> torch.Tensor:
        """Of the policy gradient, the sum over all tokens v of pi(v) A(v) grad log pi(v)."""
        objective = (student.exp().detach() * advantages.detach() * student).sum()
        return torch.autograd.grad(objective, logits, retain_graph=True)[0]

    (gradient,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    assert gradient.abs().max() > 0.01
    assert expected_gradient(divergence.expand(7)).abs().max() < 1e-12
    torch.testing.assert_close(
        expected_gradient(log_ratio(student.unsqueeze(0), teacher.unsqueeze(0)).squeeze(0)), -gradient
    )
