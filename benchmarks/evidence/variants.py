"""Variants that are no algorithm of the package: what a paper advises against, to see whether it matters."""

from typing import final

import torch

from trl_selfdistill import RLRTConfig
from trl_selfdistill.algorithms.rlrt import rlrt_advantages, rlrt_weights
from trl_selfdistill.maths import TokenScores, weight_metrics
from trl_selfdistill.trainer import TokenSignalTrainer


@final
class UngatedRLRTTrainer(TokenSignalTrainer):
    """RLRT that weights the tokens of wrong rollouts, too."""

    config_class = RLRTConfig
    args: RLRTConfig
    _name, _tag_names = "RLRT without its gate", ["trl", "trl-selfdistill", "rlrt"]
    _paper = {"title": "RLRT", "id": "2605.10781", "citation": "@article{rlrt, eprint = {arXiv:2605.10781}}"}

    def token_advantages(self, advantages, scores: TokenScores):
        everybody = torch.ones_like(scores.correct)
        strength, clip = self.args.rlrt_strength, self.args.rlrt_clip
        shaped = rlrt_advantages(advantages, scores.log_ratio, everybody, strength=strength, clip=clip)
        weights = rlrt_weights(advantages, scores.log_ratio)
        return shaped, weight_metrics("rlrt", weights, scores.mask, clip=clip)
