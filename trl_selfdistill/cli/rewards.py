"""Reward functions by name or by dotted path."""

import importlib
from typing import Any

from trl import rewards

from trl_selfdistill.cli.errors import UserError
from trl_selfdistill.context.inputs import did_you_mean

NAMES = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward", "get_soft_overlong_punishment")
"""Those of `trl grpo`."""


def load_reward(name: str, max_completion_length: int | None = None) -> Any:
    """A reward function by its name in `trl.rewards` or by its dotted path.

    `get_soft_overlong_punishment` is made for `max_completion_length`: the punishment grows over its last fifth.

    Raises `UserError` where there is none.
    """
    module, _, attribute = name.rpartition(".")
    if not module and name not in NAMES:
        raise UserError(
            f"--reward_funcs {name!r} is not one of {', '.join(NAMES)}, nor the dotted path of a function, such as "
            f"my_rewards.my_function.{did_you_mean(name, NAMES)}"
        )
    if name == "get_soft_overlong_punishment":
        length = max_completion_length or 1280  # TRL's value
        return rewards.get_soft_overlong_punishment(max_completion_len=length, soft_punish_cache=max(1, length // 5))
    if not module:
        return getattr(rewards, name)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise UserError(
            f"--reward_funcs {name!r}: there is no module {module!r} here or among the packages."
        ) from error
    except AttributeError as error:
        near = did_you_mean(attribute, vars(importlib.import_module(module)))
        raise UserError(f"--reward_funcs {name!r}: the module {module!r} has no {attribute!r}.{near}") from error
    if not callable(function):
        raise UserError(f"--reward_funcs {name!r} is a {type(function).__name__}, not a function.")
    return function


def load_rewards(names: list[str], model: str | None, max_completion_length: int | None) -> list[Any] | None:
    """All rewards of a run, a reward model first, as in `trl grpo`; `None` where there is none."""
    functions = [load_reward(name, max_completion_length) for name in names]
    return [*([model] if model else []), *functions] or None
