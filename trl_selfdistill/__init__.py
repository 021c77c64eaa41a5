"""On-policy self-distillation for TRL: the policy, shown privileged context, is its own teacher."""

from trl_selfdistill._compat import check_trl

check_trl()

from trl_selfdistill.algorithms.antisd import AntiSDConfig, AntiSDTrainer  # noqa: E402
from trl_selfdistill.algorithms.opsd import OPSDConfig, OPSDTrainer  # noqa: E402
from trl_selfdistill.algorithms.rlrt import RLRTConfig, RLRTTrainer  # noqa: E402
from trl_selfdistill.config import SelfDistillConfig  # noqa: E402
from trl_selfdistill.context.collator import PrivilegedContextCollator  # noqa: E402
from trl_selfdistill.context.rollout import Context, Rollout  # noqa: E402
from trl_selfdistill.maths import EntropyGate  # noqa: E402
from trl_selfdistill.ops import linear_divergence, linear_logps  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "AntiSDConfig",
    "AntiSDTrainer",
    "Context",
    "EntropyGate",
    "OPSDConfig",
    "OPSDTrainer",
    "PrivilegedContextCollator",
    "RLRTConfig",
    "RLRTTrainer",
    "Rollout",
    "SelfDistillConfig",
    "linear_divergence",
    "linear_logps",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
