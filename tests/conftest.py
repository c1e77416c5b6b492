"""Imports the package before any test does: onnxruntime, which some tests import too, then sends no telemetry."""

from __future__ import annotations

import forked_python
import pytest
from programs import Program

import anytime_lct  # noqa: F401

SLOW = ("test_workers.py", "test_readme.py", "test_experiments.py")


def pytest_configure(config: pytest.Config) -> None:
    """Start what forks programs, once for all processes that test."""
    if not hasattr(config, "workerinput"):
        forked_python.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that take longest first, so that two processes end at the same time."""
    items.sort(key=lambda item: item.path.name not in SLOW)


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return a function that runs `anytime-lct` in this process; it returns exit code, standard output and error."""
    from anytime_lct.cli.main import run

    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call
