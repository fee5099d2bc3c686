"""What is learned: text, series, labels, and the two synthetic classics."""

import importlib

from bptt.options import TrainOptions
from bptt.tasks.base import Batch, Shard, Sizes, Stream, Task
from bptt.typed import Json


def task_class(name: str) -> type[Task]:
    """The task of that name (see `bptt.options.TASKS`); imported on demand, since only some of them need polars."""
    found: type[Task] = getattr(importlib.import_module(f"bptt.tasks.{name}"), name.capitalize())
    return found


def make_task(options: TrainOptions) -> Task:
    """The task that `options` describe, with its data read and checked. Raises InputError."""
    make = task_class(options.task)
    return make(options)


__all__ = ["Batch", "Json", "Shard", "Sizes", "Stream", "Task", "make_task", "task_class"]
