"""Do the rollouts come from the policy that is trained?

A sampler with weights of its own (vLLM, a `rollout_func`) can fall behind without a word. The log-ratio u_t then
measures how far it fell behind, and not what the teacher thinks.
"""

import math
from typing import Any

from torch import Tensor
from transformers.utils import logging

from trl_selfdistill.maths import TokenScores, masked_fill_nan, surprise
from trl_selfdistill.record.metrics import MetricLog

logger = logging.get_logger(__name__)

DIFFERENCE = "self_distill/sampler_difference"
SURPRISE = "self_distill/surprise"
ERRORS = 5.0
"""Standard errors that a mean surprise must be away from 0."""
FEWEST = 256
"""Tokens below which a mean surprise is logged and not judged: few tokens may all be likely ones, and then the standard
error, which comes from the same tokens, is far too small."""


class SamplerMismatchError(RuntimeError):
    """The rollouts are not the policy's own, and `sampler_mismatch="stop"` asked to stop then."""


class SamplerCheck:
    """Two measures, for what samplers tell: their own log-probabilities where they give them, else the surprise.

    The surprise says nothing where a `rollout_func` makes the rollouts, nor where tokens are left out of the draw
    (top_p and its kin). Nothing is judged where a batch of rollouts lasts several steps and the scores are those of the
    policy in training (`scores_old_policy` is False).
    """

    def __init__(self, trainer: Any) -> None:
        args = trainer.args
        self._action, self._threshold = args.sampler_mismatch, args.sampler_mismatch_threshold
        self._exact = samples_exactly(args, own_rollouts=trainer.rollout_func is not None)
        self._metric_log: MetricLog = trainer.metric_log
        self._warned = False
        batch = args.steps_per_generation * args.num_iterations
        if not trainer.scores_old_policy and args.gradient_accumulation_steps % batch:
            self._action = "ignore"  # the policy moves away from the rollouts by training

    def see(self, scores: TokenScores, difference: float | None) -> dict[str, float]:
        """The metrics of a batch of rollouts. Warns or stops.

        Args:
            scores: of the batch, with the log-probabilities of the policy that should have sampled it.
            difference: mean distance to the sampler's own log-probabilities, `None` where it gave none.
        """
        if self._action == "ignore":
            return {}
        if difference is not None:
            self._judge(difference, f"the sampler's log-probabilities are {difference:.3f} nats away from the policy's")
            return {}
        if not self._exact:
            return {}
        if not self._metric_log.all_tokens(scores.mask.any(dim=1).float()).all():
            return {}  # which rows are scored may depend on what they say; then the mean is not 0 for one's own either
        each = (-scores.student_logps - scores.student_entropy)[scores.mask]
        values = self._metric_log.all_tokens(each)
        mean, error = surprise(values)
        if len(values) >= FEWEST and abs(mean) > ERRORS * error:
            text = f"the policy finds a token {mean:+.3f} nats more surprising than one of its own"
            self._judge(abs(mean), f"{text} (standard error {error:.3f})")
        return {} if math.isnan(mean) else {SURPRISE: mean}

    def _judge(self, value: float, what: str) -> None:
        if not value > self._threshold:
            return
        message = (
            f"The rollouts do not come from the policy that is trained: on average {what}. That is above "
            f"sampler_mismatch_threshold={self._threshold}. The sampler may hold old weights, weights without the "
            "adapter, another precision or another temperature: check that its weights are updated after each step. "
            "A distance that is meant is accepted by a higher threshold, or by sampler_mismatch='ignore'."
        )
        if self._action == "stop":
            raise SamplerMismatchError(message)
        if not self._warned:
            logger.warning(message)
            self._warned = True


def sampler_metrics(inputs: dict[str, Any], scores: TokenScores) -> dict[str, Tensor]:
    """|log-probability of the sampler - that of the policy| of each token, (B, T), where the sampler gave its own."""
    sampled = inputs.get("sampling_per_token_logps")
    if sampled is None:
        return {}
    if sampled.ndim == 3:  # a `rollout_func` that hands vLLM's answer on: per token a list, the sampled one first
        sampled = sampled[..., 0]
    known = scores.mask & ~sampled.isnan()
    return {DIFFERENCE: masked_fill_nan((sampled.float() - scores.student_logps).abs(), known)}


def samples_exactly(args: Any, *, own_rollouts: bool) -> bool:
    """Whether a token is drawn from all tokens, with the policy's probabilities at `args.temperature`."""
    cuts = (args.top_p != 1.0, args.repetition_penalty != 1.0, args.top_k, args.min_p)
    return not own_rollouts and not any((*cuts, args.generation_kwargs, args.vllm_structured_outputs_regex))
