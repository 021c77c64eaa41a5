"""A trainer whose model card says how to train the model again."""

import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from trl import GRPOConfig

from trl_selfdistill.record.card import (
    command_of,
    fenced,
    in_table,
    make_card,
    scores_of,
    settings_of,
    spelled,
    versions,
)
from trl_selfdistill.settings import default_of
from trl_selfdistill.teacher_config import ONLY_TEACHERS
from trl_selfdistill.trainer.resume import ResumableTrainer

TEACHERS = {
    "live": "the current policy",
    "base": "the policy as it was at the start",
    "ema": "an exponential moving average of the policy",
}
_HAS_TEACHER = "self_distill/has_teacher"


class DescribedTrainer(ResumableTrainer):
    """Writes a card of our own, with the metadata that TRL gives it. Abstract."""

    equation = ""
    """The algorithm's equation in LaTeX, for the model card. A and u_t are explained there."""
    views: Any
    collator: Any
    own_builder: Any
    """The user's `context_builder`, in the place of `args.context`."""
    train_dataset: Any
    num_generations: int  # of a configuration that TRL has resolved
    num_generations_eval: int

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        super().create_model_card(model_name, dataset_name, tags)
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir or ".") / "README.md"
        theirs: Any = ModelCard.load(path)
        facts = self.card_facts(theirs.data.base_model, model_name, dataset_name)
        facts["links"] = [line for line in theirs.content.splitlines() if line.startswith("[<img ")]  # to trackers
        make_card(theirs.data, facts).save(path)

    def card_facts(self, base_model: Any, model_name: str | None, dataset_name: str | None) -> dict[str, Any]:
        """What the card's text says, by the names in `card.md`."""
        args = self.args
        grpo = {f.name: f for f in fields(GRPOConfig)}
        left_out = {*grpo, *(() if self.views else ONLY_TEACHERS)}
        own = [f.name for f in fields(args) if f.name not in left_out]
        defaults = {name: default_of(f) for name, f in grpo.items() if f.default is not MISSING}
        shown = [entry[_HAS_TEACHER] for entry in self.state.log_history if _HAS_TEACHER in entry]
        return {
            "title": model_name or self.hub_model_id or f"A model trained with {self._name}",
            "base_model": base_model,
            "model_type": self.model.config.model_type,
            "dataset": self._dataset(dataset_name),
            "trainer": self._name,
            "paper_title": self._paper["title"],
            "paper_id": self._paper["id"],
            "citation": self._paper["citation"],
            "hub_model_id": self.hub_model_id,
            "equation": self.equation,
            "asks_teacher": bool(self.views),
            "teacher": f"`{args.teacher_model_kind}`: {TEACHERS[args.teacher_model_kind]}",
            "context": in_table(self._context()),
            "has_teacher": f"{shown[-1]:.0%} at the last logged step" if shown else "not logged",
            "steps": self.state.global_step,
            "rollouts": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "template": fenced(self.collator.template) if self.views else "",
            "command": command_of(sys.argv),
            "settings": settings_of(args, defaults, own),
            "scores": scores_of(self.state.log_history),
            "temperature": args.temperature,
            "max_completion_length": args.max_completion_length,
            "num_generations_eval": args.num_generations_eval,
            "versions": versions(),
        }

    def _context(self) -> str:
        """The name of the context, or the function that a `context_builder` is."""
        return self.args.context if self.own_builder is None else spelled(self.own_builder)

    def _dataset(self, name: str | None) -> str | None:
        if name is not None:
            return f"[{name}](https://huggingface.co/datasets/{name})"
        info = getattr(self.train_dataset, "info", None)
        found = getattr(info, "dataset_name", None)
        return None if found is None else f"the dataset {in_table(found)}"
