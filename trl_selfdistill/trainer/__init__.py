"""The bases of an algorithm. The only folder that touches TRL's private names and private call protocols."""

from trl_selfdistill.trainer.arguments import ARGUMENTS
from trl_selfdistill.trainer.base import SelfDistillTrainer
from trl_selfdistill.trainer.divergence import DivergenceTrainer
from trl_selfdistill.trainer.token_signal import TokenSignalTrainer

__all__ = ["DivergenceTrainer", "SelfDistillTrainer", "TokenSignalTrainer"]

SelfDistillTrainer.__init__.__doc__ = ARGUMENTS
