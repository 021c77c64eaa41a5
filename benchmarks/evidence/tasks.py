"""The tasks by name."""

from evidence.chains import Chains
from evidence.routes import Routes
from evidence.sums import Sums
from evidence.task import Task

TASKS: dict[str, type[Task]] = {"routes": Routes, "sums": Sums, "chains": Chains}


def make_task(name: str, world: int) -> Task:
    return TASKS[name](world)
