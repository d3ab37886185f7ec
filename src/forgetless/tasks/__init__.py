"""What models are trained for. Each kind of task is a file of this package; one line registers it."""

from forgetless.tasks.base import TASKS, Task, TaskOptions, Unit

__all__ = ["TASKS", "Task", "TaskOptions", "Unit"]
