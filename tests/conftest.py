"""Imports the package before any test does: onnxruntime, which some tests import too, then sends no telemetry."""

import forked_python
import pytest

import anytime_lct  # noqa: F401

SLOW = ("test_workers.py", "test_readme.py", "test_experiments.py")


def pytest_configure(config: pytest.Config) -> None:
    """Start what forks programs, once for all processes that test."""
    if not hasattr(config, "workerinput"):
        forked_python.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that take longest first, so that two processes end at the same time."""
    items.sort(key=lambda item: item.path.name not in SLOW)
