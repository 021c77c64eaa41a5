"""Is a trainer's class complete? Asked when the class is made, not when it trains."""

from typing import Any

from trl import GRPOTrainer

_OWN = {
    "_name": "the name on model cards and checkpoints",
    "_paper": "title, id and citation for model cards",
    "_tag_names": "the tags of model cards",
}
PLACEMENTS = {"user", "system"}


def check_definition(trainer: Any, base: Any) -> None:
    """Raise `ValueError` for an incomplete subclass of `base` (`SelfDistillTrainer`). Abstract classes may be so."""
    members = (getattr(trainer, name, None) for name in dir(trainer))
    if any(getattr(member, "__isabstractmethod__", False) for member in members):
        return
    name = trainer.__name__
    for attribute, what in _OWN.items():
        if getattr(trainer, attribute) == getattr(GRPOTrainer, attribute):
            raise ValueError(
                f"{name} has no {attribute} of its own ({what}): it would be GRPO's. Define it in the class."
            )
    if getattr(trainer, "config_class", None) is None:
        raise ValueError(f"{name} has no config_class. Set it to its subclass of SelfDistillConfig.")
    if trainer.templates and set(trainer.templates) != PLACEMENTS:
        missing = sorted(PLACEMENTS - set(trainer.templates)) or sorted(set(trainer.templates) - PLACEMENTS)
        raise ValueError(f"{name}.templates must have the keys 'user' and 'system', or be empty; see {missing}.")
    views = trainer.views
    if not isinstance(views, tuple) or len(set(views)) != len(views):
        raise ValueError(f"{name}.views={views!r} must be a tuple of different names.")
    if len(views) > 1 and trainer.contexts is base.contexts:
        raise ValueError(f"{name}.views={views!r} need a method `contexts` that says what each of them shows.")


def paper_of(trainer: Any) -> dict[str, str]:
    """`title`, `id` (arXiv) and `citation` of the paper of a trainer class."""
    return trainer._paper
