"""On-policy self-distillation for TRL: the policy, shown privileged context, is its own teacher."""

import importlib
from typing import TYPE_CHECKING, Any

from trl_selfdistill._compat import check_trl

if TYPE_CHECKING:
    from trl_selfdistill.algorithms.antisd import AntiSDConfig, AntiSDTrainer
    from trl_selfdistill.algorithms.opsa import OPSAConfig, OPSATrainer
    from trl_selfdistill.algorithms.opsd import OPSDConfig, OPSDTrainer
    from trl_selfdistill.algorithms.power_opd import PowerOPDConfig, PowerOPDTrainer
    from trl_selfdistill.algorithms.rlcsd import RLCSDConfig, RLCSDTrainer
    from trl_selfdistill.algorithms.rlrt import RLRTConfig, RLRTTrainer
    from trl_selfdistill.algorithms.rlsd import RLSDConfig, RLSDTrainer
    from trl_selfdistill.algorithms.sdpo import SDPOConfig, SDPOTrainer
    from trl_selfdistill.config import SelfDistillConfig
    from trl_selfdistill.context.collator import PrivilegedContextCollator
    from trl_selfdistill.context.memory import ContextMemory, LessonMemory
    from trl_selfdistill.context.rollout import Context, Rollout
    from trl_selfdistill.maths import EntropyGate
    from trl_selfdistill.ops import linear_divergence, linear_logps

check_trl()

__version__ = "0.1.0"

__all__ = [
    "AntiSDConfig",
    "AntiSDTrainer",
    "Context",
    "ContextMemory",
    "EntropyGate",
    "LessonMemory",
    "OPSAConfig",
    "OPSATrainer",
    "OPSDConfig",
    "OPSDTrainer",
    "PowerOPDConfig",
    "PowerOPDTrainer",
    "PrivilegedContextCollator",
    "RLCSDConfig",
    "RLCSDTrainer",
    "RLRTConfig",
    "RLRTTrainer",
    "RLSDConfig",
    "RLSDTrainer",
    "Rollout",
    "SDPOConfig",
    "SDPOTrainer",
    "SelfDistillConfig",
    "linear_divergence",
    "linear_logps",
]

# A public name is imported when it is asked for, as in TRL: torch takes seconds, and `--help` does not need it.
_HOME = {
    "algorithms.antisd": ("AntiSDConfig", "AntiSDTrainer"),
    "algorithms.opsa": ("OPSAConfig", "OPSATrainer"),
    "algorithms.opsd": ("OPSDConfig", "OPSDTrainer"),
    "algorithms.power_opd": ("PowerOPDConfig", "PowerOPDTrainer"),
    "algorithms.rlcsd": ("RLCSDConfig", "RLCSDTrainer"),
    "algorithms.rlrt": ("RLRTConfig", "RLRTTrainer"),
    "algorithms.rlsd": ("RLSDConfig", "RLSDTrainer"),
    "algorithms.sdpo": ("SDPOConfig", "SDPOTrainer"),
    "config": ("SelfDistillConfig",),
    "context.collator": ("PrivilegedContextCollator",),
    "context.memory": ("ContextMemory", "LessonMemory"),
    "context.rollout": ("Context", "Rollout"),
    "maths": ("EntropyGate",),
    "ops": ("linear_divergence", "linear_logps"),
}
_MODULES = {name: f"{__name__}.{module}" for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
