"""Every task in token rows of the library keeps its contract."""

from archloop import registry
from archloop.testing import TaskContract


class TestTasks(TaskContract):
    names = registry.shipped("tasks")
