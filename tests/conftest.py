"""Imports the package before any test does: onnxruntime, which some tests import too, then sends no telemetry."""

from __future__ import annotations

import forked_python
import pytest
from programs import Program

import anytime_lct  # noqa: F401

SLOW = ("test_workers.py", "test_pages.py", "test_experiments.py")


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


@pytest.fixture
def folder(tmp_path):
    """A folder of two bundles to serve, of a network on images and of one on text."""
    from bundles import write_image_bundle, write_text_bundle

    write_image_bundle(tmp_path / "tiny.bundle")
    write_text_bundle(tmp_path / "text")
    return tmp_path


@pytest.fixture
def engine():
    """An engine without a scheduler."""
    from fake_engine import FakeEngine

    with FakeEngine() as engine:
        yield engine


@pytest.fixture
def app(folder, engine):
    """The server over `folder`, as an app whose clients may load and unload."""
    from serving_apps import ADMIN, service_of

    from anytime_lct.serving.http.app import create_app

    return create_app(service_of(folder, engine), access=ADMIN)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The manifest of a bundle of a network on images."""
    from bundles import write_image_bundle

    return write_image_bundle(tmp_path_factory.mktemp("image") / "tiny").manifest


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The manifest of a bundle of a network on text."""
    from bundles import write_text_bundle

    return write_text_bundle(tmp_path_factory.mktemp("text") / "tiny").manifest
