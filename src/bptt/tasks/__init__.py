"""What is learned: text, series, labels, and the two synthetic classics."""

from bptt.options import TrainOptions
from bptt.tasks.base import Batch, Json, Shard, Sizes, Stream, Task


def task_class(name: str) -> type[Task]:
    """The task of that name (see `bptt.options.TASKS`)."""
    from bptt.tasks import adding, copy, labels, series, text

    classes: dict[str, type[Task]] = {
        "text": text.Text,
        "series": series.Series,
        "labels": labels.Labels,
        "adding": adding.Adding,
        "copy": copy.Copy,
    }
    return classes[name]


def make_task(options: TrainOptions) -> Task:
    """The task that `options` describe, with its data read and checked. Raises InputError."""
    return task_class(options.task)(options)


__all__ = ["Batch", "Json", "Shard", "Sizes", "Stream", "Task", "make_task", "task_class"]
