"""The methods that are compared, as data: a trainer's name, and what its configuration has other than its defaults.

The defaults are the papers' values. Nobody has a learning rate here: each method's own is chosen by the sweep.
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import trl_selfdistill

PEER = {"context": "peer"}
ROLLOUTS = {"num_generations": 8}
"""OPSD and SDPO would draw one rollout a prompt: here everybody has the same number, and so a group with peers."""


UNTAUGHT = ("trl.GRPOTrainer", "OPSATrainer")
"""Trainers that ask no teacher."""


@dataclass(frozen=True)
class Method:
    """One row of the comparison."""

    trainer: str
    """Name of a class of `trl_selfdistill`, or of `trl` or `evidence.variants`, with its home in front."""
    config: dict[str, Any] = field(default_factory=dict)
    strengths: tuple[str, tuple[float, ...]] | None = None
    """The field that the sweep of strengths varies, and its values. The default lies inside."""


def _rlrt(**config: Any) -> Method:
    return Method("RLRTTrainer", {**PEER, **config})


def _antisd(**config: Any) -> Method:
    return Method("AntiSDTrainer", {**PEER, **config})


def _opsd(**config: Any) -> Method:
    return Method("OPSDTrainer", {**PEER, **ROLLOUTS, **config})


UNCLIPPED = {"opsd_token_clip": None}
ENTRY_CLIP = {"opsd_token_clip": None, "opsd_entry_clip": 0.05}

METHODS: dict[str, Method] = {
    "grpo": Method("trl.GRPOTrainer"),
    "rlrt": Method("RLRTTrainer", PEER, ("rlrt_strength", (0.25, 0.5, 1.0))),
    "antisd": Method("AntiSDTrainer", PEER, ("antisd_strength", (0.1, 0.5, 2.0))),
    "opsd": Method("OPSDTrainer", {**PEER, **ROLLOUTS}, ("opsd_token_clip", (0.02, 0.05, 0.2))),
    "rlrt_ungated": Method("evidence.variants.UngatedRLRTTrainer", PEER),
    "rlrt_own_peer": _rlrt(context="own_peer"),
    "rlrt_paced": _rlrt(row_weight="paced"),
    "rlsd": Method("RLSDTrainer", PEER, ("rlsd_strength", (0.25, 0.5, 1.0))),
    "antisd_open": _antisd(antisd_close_ratio=0.0),
    "antisd_toward": _antisd(antisd_direction="toward"),
    "opsd_unclipped": _opsd(**UNCLIPPED),
    "opsd_entry_clip": _opsd(**ENTRY_CLIP),
    "sdpo": Method("SDPOTrainer", {**PEER, **ROLLOUTS}),
    "rlcsd": Method("RLCSDTrainer", PEER, ("rlcsd_strength", (0.25, 0.5, 1.0))),
    "poweropd": Method("PowerOPDTrainer", PEER, ("power_opd_strength", (0.3, 1.0, 3.0))),
    # Controls: a teacher that sees the prompt alone, and one that sees the solution of another problem.
    "opsd_none": _opsd(context="none"),
    "rlrt_other_gold": _rlrt(context="other_gold"),
    "antisd_other_gold": _antisd(context="other_gold"),
    "opsd_other_gold": _opsd(context="other_gold"),
    # The second table: everybody is shown the task's own solution.
    "rlrt_gold": _rlrt(context="gold"),
    "antisd_gold": _antisd(context="gold"),
    "opsd_gold": _opsd(context="gold"),
    "rlsd_gold": Method("RLSDTrainer", {"context": "gold"}),
    "poweropd_gold": Method("PowerOPDTrainer", {"context": "gold"}),
    # Whose weights score. OPSD's default is the policy at the start, SDPO's an average, RLRT's the policy itself.
    "opsd_live": _opsd(teacher_model_kind="live"),
    "opsd_ema": _opsd(teacher_model_kind="ema"),
    "sdpo_live": Method("SDPOTrainer", {**PEER, **ROLLOUTS, "teacher_model_kind": "live"}),
    "sdpo_base": Method("SDPOTrainer", {**PEER, **ROLLOUTS, "teacher_model_kind": "base"}),
    "rlrt_base": _rlrt(teacher_model_kind="base"),
    "rlrt_ema": _rlrt(teacher_model_kind="ema"),
    "opsd_paced": _opsd(row_weight="paced"),
    "opsa": Method("OPSATrainer"),
}


def trainer_class(method: Method) -> Any:
    home, _, name = method.trainer.rpartition(".")
    return getattr(importlib.import_module(home or "trl_selfdistill"), name)


def missing(names: Iterable[str]) -> dict[str, str]:
    """The methods among `names` whose trainer the package does not have (yet), and that trainer. Imports none."""
    trainers = {name: METHODS[name].trainer for name in names}
    return {name: made for name, made in trainers.items() if "." not in made and made not in trl_selfdistill.__all__}


def configuration(method: Method, settings: dict[str, Any], overrides: dict[str, Any]) -> Any:
    """The configuration of the trainer's own class: `settings`, then the method's own values, then `overrides`."""
    cls = trainer_class(method)
    config_class = (
        importlib.import_module("trl").GRPOConfig if method.trainer == "trl.GRPOTrainer" else cls.config_class
    )
    return config_class(**{**settings, **method.config, **overrides})
