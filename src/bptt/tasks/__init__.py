"""What is learned: text, series, labels, and two synthetic problems.

reading/ (files) → a task → streams/ (batches) → training;    scoring/ judges the answers
"""

import importlib

from bptt.options import TrainOptions
from bptt.tasks.base import Batch, Shard, Sizes, Stream, Task
from bptt.typed import Json


def task_class(name: str) -> type[Task]:
    """Return the task of that name, one of `bptt.options.TASKS`. Imported on demand: only some of them need polars."""
    found: type[Task] = getattr(importlib.import_module(f"bptt.tasks.{name}"), name.capitalize())
    return found


def make_task(options: TrainOptions) -> Task:
    """Return the task that `options` describe, with its data read and checked. Raises InputError."""
    make = task_class(options.task)
    return make(options)


__all__ = ["Batch", "Json", "Shard", "Sizes", "Stream", "Task", "make_task", "task_class"]
