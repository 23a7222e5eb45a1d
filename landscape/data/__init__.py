"""Tasks: text from a generator, the hub or files, cut into train, eval and probe, and encoded for a model's kind."""

from landscape.data.metrics import task_metrics
from landscape.data.rows import data_digest
from landscape.data.splits import Split, TaskData, check_task, load_task, num_labels
from landscape.data.tasks import TASKS, Task

__all__ = ["TASKS", "Split", "Task", "TaskData", "check_task", "data_digest", "load_task", "num_labels", "task_metrics"]
