"""An algorithm of your own: RLSD (https://huggingface.co/papers/2604.03128), from its formula to a trainer.

The formula is a pure function, the configuration has one field per hyper-parameter, the trainer has one method. Peers,
prompts, teachers, checkpoints, metrics and the model card come with the base class, for one process or many.
The package's `RLSDTrainer` is the complete one, with checks and a setting for each number.

    python examples/new_algorithm.py
"""

from dataclasses import dataclass, field
from typing import final

from jaxtyping import Float
from tiny_policy import HINT_TEMPLATE, accuracy, exact_reward, sums, tiny_policy
from torch import Tensor

from trl_selfdistill import SelfDistillConfig
from trl_selfdistill.maths import TokenScores, bounded_exp, clipped_weights, weight_metrics
from trl_selfdistill.trainer import TokenSignalTrainer


def rlsd_weights(advantages: Float[Tensor, " B"], log_ratio: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """w_t = exp(sign(A) u_t): above 1 where the teacher, too, wants what the return wants."""
    return bounded_exp(advantages.sign().unsqueeze(1) * log_ratio)


@dataclass
class RLSDConfig(SelfDistillConfig):
    rlsd_strength: float = field(default=0.5, metadata={"help": "Lambda at the start. 0 is GRPO."})


@final
class RLSDTrainer(TokenSignalTrainer):
    config_class = RLSDConfig
    args: RLSDConfig
    _name, _tag_names = "RLSD", ["trl", "trl-selfdistill", "rlsd"]
    _paper = {"title": "RLSD", "id": "2604.03128", "citation": "@article{rlsd, eprint = {arXiv:2604.03128}}"}

    def token_advantages(self, advantages, scores: TokenScores):
        strength = self.args.rlsd_strength * max(0.0, 1.0 - scores.step / 60)  # falls to 0 over 60 optimiser steps
        weights = rlsd_weights(advantages, scores.log_ratio)
        shaped = advantages.unsqueeze(1) * (1.0 + strength * (clipped_weights(weights, clip=0.2) - 1.0))
        return shaped, weight_metrics("rlsd", weights, scores.mask, clip=0.2)


def main(steps: int = 60) -> float:
    """Train the tiny policy, which is right in about 23 % of its answers. Its share of right answers afterwards."""
    model, tokenizer = tiny_policy()
    args = RLSDConfig(
        output_dir="outputs/new_algorithm",
        teacher_template=HINT_TEMPLATE,
        per_device_train_batch_size=128,
        max_completion_length=4,
        learning_rate=3e-4,
        max_steps=steps,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
    )
    trainer = RLSDTrainer(model, exact_reward, args, sums(repeat=20), processing_class=tokenizer)
    trainer.train()
    return accuracy(trainer.model, tokenizer)


if __name__ == "__main__":
    print(f"right answers after training: {main():.0%}")
