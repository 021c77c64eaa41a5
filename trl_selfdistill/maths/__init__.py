"""Pure maths on per-token log-probabilities. Imports torch and nothing else of ours.

Shapes, here and everywhere in the package: B rollouts of a batch, T completion tokens, N valid tokens, H hidden size,
V vocabulary, G rollouts of a group. Symbols: `s_t` and `t_t` are the log-probabilities of the sampled token under
student and teacher, `u_t = t_t - s_t` is their log-ratio. All logarithms are natural (nats).
"""

from trl_selfdistill.maths.gate import EntropyGate
from trl_selfdistill.maths.ratios import bounded_exp, clipped_weights, log_ratio, mean_logps, phi
from trl_selfdistill.maths.scores import TokenScores, ViewScores
from trl_selfdistill.maths.stats import exact_median, masked_fill_nan, summary, surprise, weight_metrics
from trl_selfdistill.maths.weights import paced_weights, position_weights, skip_weights

__all__ = [
    "EntropyGate",
    "TokenScores",
    "ViewScores",
    "bounded_exp",
    "clipped_weights",
    "exact_median",
    "log_ratio",
    "masked_fill_nan",
    "mean_logps",
    "paced_weights",
    "phi",
    "position_weights",
    "skip_weights",
    "summary",
    "surprise",
    "weight_metrics",
]
