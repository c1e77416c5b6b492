"""What is in service: broken bundles beside good ones, loads that are all or none, models taken out, and metrics."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from asgi import ask
from bundles import rewrite, spoil, write_image_bundle
from fake_engine import FakeEngine, FakeServed, open_repository

from anytime_lct.errors import BundleError
from anytime_lct.exits.budget import DEFAULT_ASK
from anytime_lct.serving.access import Access
from anytime_lct.serving.crew import Alone, agree
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.limits import DEFAULT_LIMITS
from anytime_lct.serving.metrics import Metrics, add, lasting
from anytime_lct.serving.repository import Report, Repository
from anytime_lct.serving.request import Overloaded, Refusal
from anytime_lct.serving.service import Service

INDEX = "/v2/repository/index"


@pytest.fixture
def folder(tmp_path):
    write_image_bundle(tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "other")
    return tmp_path


def rows(repository):
    return [(row.name, row.version, row.is_ready) for row in repository.index()]


def load(repository, name=None):
    metrics = Metrics()
    asyncio.run(Alone(repository, metrics).load(name))
    return metrics


def test_a_broken_bundle_leaves_the_others_in_service_at_the_start(folder):
    spoil(folder / "other")
    (folder / "no name").mkdir()
    shutil.copy(folder / "good" / "manifest.json", folder / "no name")
    repository = open_repository(folder)
    assert rows(repository) == [("good", "1", True), ("no name", "1", False), ("other", "1", False)]
    assert "altered" in repository.index()[-1].reason
    for _ in range(2):
        with pytest.raises(BundleError, match="altered"):
            repository.find("other")
    service = Service(repository, FakeEngine(), Metrics(), DEFAULT_LIMITS, DEFAULT_ASK)
    index = ask(create_app(service), "POST", INDEX).json()
    assert [row["state"] for row in index] == ["READY", "UNAVAILABLE", "UNAVAILABLE"]
    assert ask(create_app(service), "GET", "/v2/models/other/ready").status == 500


def test_a_broken_bundle_leaves_the_others_to_change_and_itself_as_it_was(folder):
    repository = open_repository(folder)
    rewrite(folder / "good", classes=["a", "b", "c"])
    spoil(folder / "other")
    rewrite(folder / "other", classes=["x", "y", "z"])
    load(repository)
    assert repository.find("good").bundle.manifest.classes == ("a", "b", "c")
    assert repository.find("other").bundle.manifest.classes != ("x", "y", "z")
    assert rows(repository) == [("good", "1", True), ("other", "1", True)]
    assert "altered" in repository.index()[1].reason


def test_a_load_is_of_that_model_alone(folder):
    repository = open_repository(folder)
    rewrite(folder / "good", classes=["a", "b", "c"])
    rewrite(folder / "other", classes=["x", "y", "z"])
    shutil.copytree(folder / "good", folder / "third")
    spoil(folder / "third")
    metrics = load(repository, "good")
    assert repository.find("good").bundle.manifest.classes == ("a", "b", "c")
    assert repository.find("other").bundle.manifest.classes != ("x", "y", "z")
    assert metrics.values()["anytime_lct_reloads"] == {
        ("anytime_lct_reloads_total", (("outcome", "done"),)): 1.0,
        ("anytime_lct_reloads_total", (("outcome", "failed"),)): 0.0,
    }


def test_a_load_of_several_versions_is_all_or_none(tmp_path):
    for version in ("1", "2"):
        write_image_bundle(tmp_path / "tiny" / version)
    repository = open_repository(tmp_path)
    rewrite(tmp_path / "tiny" / "1", classes=["a", "b", "c"])
    spoil(tmp_path / "tiny" / "2")
    rewrite(tmp_path / "tiny" / "2", classes=["a", "b", "c"])
    with pytest.raises(BundleError, match="altered"):
        load(repository, "tiny")
    assert {repository.find("tiny", version).bundle.manifest.classes[0] for version in ("1", "2")} == {"zero"}
    assert rows(repository) == [("tiny", "1", True), ("tiny", "2", True)]
    assert repository.index()[0].reason == "" and "altered" in repository.index()[1].reason


def test_what_is_unloaded_stays_out_until_it_is_loaded(folder):
    service = Service(open_repository(folder), FakeEngine(), Metrics(), DEFAULT_LIMITS, DEFAULT_ASK)
    app = create_app(service, access=Access(allow_admin=True))
    body = {"parameters": {"unload_dependents": False}}  # tritonclient's
    assert ask(app, "POST", "/v2/repository/models/other/unload", body).status == 200
    response = ask(app, "GET", "/v2/models/other")
    assert response.status == 404 and "unloaded" in response.json()["error"]
    load(service.repository)
    assert rows(service.repository) == [("good", "1", True), ("other", "1", False)]
    replaced = Repository(folder, FakeServed, {("other", "1"): Refusal("The model 'other' is unloaded.", "unknown")})
    replaced.start(replaced.prepare())
    assert rows(replaced) == rows(service.repository)
    assert ask(app, "POST", "/v2/repository/models/other/unload").status == 404
    assert ask(app, "POST", "/v2/repository/models/other/load").status == 200
    assert rows(service.repository) == [("good", "1", True), ("other", "1", True)]


def test_before_bundles_are_read_the_server_lives_and_is_not_ready(folder):
    service = Service(Repository(folder, FakeServed), FakeEngine(), Metrics(), DEFAULT_LIMITS, DEFAULT_ASK)
    app = create_app(service, access=Access(allow_admin=True))
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/good", "/metrics")
    assert [ask(app, "GET", path).status for path in paths] == [200, 503, 503, 200]
    for path in ("/v2/models/good/infer", "/v2/repository/models/good/load"):
        assert ask(app, "POST", path).headers["retry-after"] == "1"
    with pytest.raises(Overloaded):
        service.repository.find("good")


def test_processes_agree_on_what_all_have_opened_alike():
    error = BundleError("broken")
    one = Report({("a", "1"): "5e", ("b", "1"): "00", ("c", "1"): "77"}, {})
    two = Report({("a", "1"): "5e", ("b", "1"): "01"}, {("c", "1"): error})
    accepted, problems = agree([one, two, one])
    assert accepted == {("a", "1"): "5e"} and problems["c", "1"] is error
    assert "changed while it was read" in str(problems["b", "1"])
    assert agree([one]) == (one.sums, {})


def test_metrics_of_several_processes_are_sums():
    one, two = Metrics(), Metrics()
    for metrics, times in ((one, 2), (two, 3)):
        for _ in range(times):
            metrics.counters("tiny", "1", (1, 2)).outcomes["answered"] += 1
            metrics.counters("tiny", "1", (1, 2)).latency.observe(0.004)
        metrics.in_flight.set(times)
    both = add([one.values(), two.values()])
    text = one.text(both).decode()
    assert 'anytime_lct_requests_total{model="tiny",outcome="answered",version="1"} 5.0' in text
    assert 'anytime_lct_request_seconds_bucket{le="0.005",model="tiny",version="1"} 5.0' in text
    assert "anytime_lct_in_flight 5.0" in text and "process_resident_memory_bytes" in text
    assert "# TYPE anytime_lct_requests_total counter" in text
    started = ("process_start_time_seconds", ())
    assert both["process_start_time_seconds"][started] == one.values()["process_start_time_seconds"][started]
    statistics = one.statistics("tiny", "1", (1, 2), add([lasting(one.values()), two.values()]))
    assert statistics["execution_count"] == 5 and statistics["anytime"]["in_flight"] == 3


def test_memory_does_not_grow_with_every_load(folder):
    repository, manifest = open_repository(folder), folder / "good" / "manifest.json"
    content, page = manifest.read_bytes(), os.sysconf("SC_PAGE_SIZE")

    def load_many(times):
        for k in range(times):
            manifest.write_bytes(content + b" " * (1 + k % 2))
            load(repository, "good")
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    before = load_many(15)
    assert load_many(15) - before < 3_000_000  # a bundle and its graphs take 0.4 MB
