"""The server as an app: the protocol's paths, what cannot be answered, what is counted, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from asgi import ask, binary, logits, request
from bundles import rewrite, write_image_bundle
from fake_engine import FakeEngine
from serving_apps import INFER, JSON, X, refused, service_of

from anytime_lct.errors import BundleError
from anytime_lct.exits.budget import Ask, Budget
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.metrics import OUTCOMES
from anytime_lct.serving.request import Overloaded


def test_every_exit_answers_as_the_session_does(app, folder):
    session = AnytimeSession(folder / "tiny.bundle")
    for exit in (1, 2, 3):
        body, headers = binary(X, max_exit=exit)
        response = ask(app, "POST", INFER, body, headers)
        assert np.array_equal(logits(response), session.run_to(exit, X).logits)
        plain = ask(app, "POST", INFER, JSON | {"parameters": {"max_exit": exit}}).json()
        assert np.array_equal(np.array(plain["outputs"][0]["data"], np.float32), logits(response).ravel())
        assert plain["parameters"]["exit"] == exit and plain["outputs"][1]["data"] == [exit, exit]
        assert "on_time" not in plain["parameters"]


def test_text_is_answered_too(app, folder):
    session = AnytimeSession(folder / "text")
    sent = {"inputs": [{"name": "input", "datatype": "BYTES", "shape": [1], "data": ["abé"]}]}
    output = ask(app, "POST", "/v2/models/text/infer", sent).json()["outputs"][0]
    assert output["shape"] == [1, 3, 5]
    expected = session.run_to(3, np.array([[0, 1, 3]])).logits
    assert np.array_equal(np.array(output["data"], np.float32), expected.ravel())


def test_the_engine_is_told_what_the_request_may_cost(folder, engine):
    app = create_app(service_of(folder, engine, default=Ask(Budget(exit=2), timeout=9.0)))
    ask(app, "POST", INFER, JSON | {"parameters": {"max_flops": 120, "timeout": 7_000_000}})
    content = ask(app, "POST", INFER, JSON).json()
    assert engine.asked == [Ask(Budget(flops=120.0, exit=2), timeout=7.0), Ask(Budget(exit=2), timeout=9.0)]
    assert len(engine.left) == 2 and content["parameters"]["on_time"] is True


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (
            "/v2",
            {"extensions": ["binary_tensor_data", "classification", "model_repository", "statistics"]},
        ),
        ("/v2/models/tiny", {"parameters": {"classes": ["zero", "one", "two"]}}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/tiny", {"name": "tiny", "versions": ["1"]}),
        ("/v2/models/tiny/versions/1", {"name": "tiny"}),
        ("/v2/models/tiny/ready", {"name": "tiny", "ready": True}),
        ("/v2/models/tiny/versions/1/ready", {"ready": True}),
        ("/v2/models/text/config", {"name": "text", "max_batch_size": 16_384}),
        ("/openapi.json", {"openapi": "3.1.0"}),
    ],
)
def test_paths_tell_of_the_server_and_its_models(app, path, part):
    response = ask(app, "GET", path)
    assert response.status == 200 and part.items() <= response.json().items()
    refused(ask(app, "POST", path), 405, "GET")


def test_exits_tell_cost_and_quality(app):
    content = ask(app, "GET", "/v2/models/tiny/exits").json()
    assert [(row["flops"], row["quality"]) for row in content["exits"]] == [(35, 0.8), (100, 0.9), (150, 0.95)]
    assert content["classes"] == ["zero", "one", "two"] and content["preprocessing"]["height"] == 6


def test_the_page_comes_from_the_server_alone(app):
    response = ask(app, "GET", "/")
    assert response.status == 200 and response.headers["content-type"].startswith("text/html")
    assert b"http://" not in response.body and b"https://" not in response.body
    assert "default-src 'none'" in response.headers["content-security-policy"]
    described = ask(app, "GET", "/metrics").body.decode()
    for outcome, meaning in OUTCOMES.items():  # one vocabulary
        assert f'{outcome}<small>{meaning}</small></th><td id="{outcome}">' in response.body.decode()
        assert f"{outcome} ({meaning})" in described


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v3", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/tiny/versions/7", 404),
        ("GET", "/v2/models/tiny/versions/%00", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/tiny/versions/2/infer", 404),
        ("POST", "/v2/repository/models/other/load", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2", 405),
        ("POST", INFER, 400),
    ],
)
def test_what_cannot_be_answered_is_said_in_the_protocols_words(app, method, path, status):
    refused(ask(app, method, path), status)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [({"max_flops": 3}, "35"), ({"depth": 1}, "'depth'"), ({"mode": "fixed", "min_confidence": 0.5}, "both")],
)
def test_budgets_that_nothing_fits_or_nobody_knows_are_bad_requests(app, parameters, words):
    refused(ask(app, "POST", INFER, JSON | {"parameters": parameters}), 400, words)


def test_an_overloaded_engine_says_when_to_come_again(app, engine):
    engine.error = Overloaded("Expected less, got more; try again.", retry_after=2.3)
    assert refused(ask(app, "POST", INFER, JSON), 503).headers["retry-after"] == "3"
    assert app.state.service.metrics.counters("tiny", "1", (1, 2, 3)).outcomes["shed"] == 1


def test_a_failing_engine_is_the_servers_fault_and_is_counted(app, engine):
    engine.error = ZeroDivisionError("made")
    with pytest.raises(ZeroDivisionError):  # the framework answers, and raises it again for the log
        ask(app, "POST", INFER, JSON)
    assert app.state.service.metrics.counters("tiny", "1", (1, 2, 3)).outcomes["failed"] == 1


def test_what_a_gone_client_asked_for_is_dropped_if_it_has_not_begun(app, engine):
    async def leave():
        engine.gate.clear()
        gone = asyncio.Event()
        first = asyncio.create_task(request(app, "POST", INFER, *binary(X)))
        while not engine.asked:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(request(app, "POST", INFER, *binary(X), gone=gone))
        while len(engine.asked) < 2:
            await asyncio.sleep(0.001)
        gone.set()
        left = await second
        engine.gate.set()
        return left, await first

    left, stayed = asyncio.run(leave())
    assert (left.status, stayed.status, len(engine.left)) == (0, 200, 1)
    counts = ask(app, "GET", "/v2/models/tiny/stats").json()["model_stats"][0]["anytime"]["requests"]
    assert counts == {"answered": 1, "refused": 0, "shed": 0, "gone": 1, "failed": 0}


def test_requests_are_counted_by_model_outcome_exit_and_deadline(app):
    ask(app, "POST", INFER, JSON | {"parameters": {"max_exit": 1, "timeout": "9s"}})
    ask(app, "POST", INFER, JSON | {"parameters": {"max_exit": 2, "timeout": "1us"}})
    ask(app, "POST", INFER, b"{")
    ask(app, "POST", "/v2/models/other/infer", b"{")
    stats = ask(app, "GET", "/v2/models/tiny/stats").json()["model_stats"][0]
    assert stats["anytime"] == {
        "requests": {"answered": 2, "refused": 1, "shed": 0, "gone": 0, "failed": 0},
        "deadlines": {"kept": 1, "missed": 1},
        "exits": {"1": 2, "2": 2, "3": 0},
        "queue_length": 0,
        "in_flight": 0,
    }
    assert (stats["inference_count"], stats["execution_count"]) == (4, 2)
    assert stats["inference_stats"]["success"]["count"] == 2 and stats["inference_stats"]["success"]["ns"] > 0
    text = ask(app, "GET", "/metrics").body.decode()
    assert 'anytime_lct_exits_total{exit="2",model="tiny",version="1"} 2.0' in text
    assert 'anytime_lct_request_seconds_bucket{le="10.0",model="tiny",version="1"} 2.0' in text
    assert "other" not in text


def test_what_the_docs_say_of_malformed_requests_is_the_committed_result():
    house = Path(__file__).parent.parent
    result = json.loads((house / "benchmarks" / "results" / "fuzz_server.json").read_text(encoding="utf-8"))
    assert result["failures"] == [] and result["answers_as_before"] is True and result["exit_code"] == 0
    assert {int(status) for status in result["statuses"] if int(status) >= 500} <= {503}
    megabytes = [round(result["memory"][when] / 1e6) for when in ("after_500_requests", "at_the_end", "at_most")]
    docs = " ".join((house / "docs" / "serving.md").read_text(encoding="utf-8").split())
    assert f"Of {sum(result['sent'].values()):,} requests, {result['refused']:,} were refused" in docs
    assert "used {} MB after 500 requests, {} MB at the end and {} MB at most".format(*megabytes) in docs


def test_what_the_docs_say_of_requests_a_second_is_the_committed_result():
    house = Path(__file__).parent.parent
    result = json.loads((house / "benchmarks" / "results" / "throughput.json").read_text(encoding="utf-8"))
    ratios = [row["ratio"] for row in result["rows"] if row["server"] != "bare"]
    docs = " ".join((house / "docs" / "serving.md").read_text(encoding="utf-8").split())
    assert len(ratios) == 9 and f"answered {min(ratios):.2f} to {max(ratios):.2f} times as many requests" in docs


def test_it_may_be_mounted_in_another_app(app):
    from starlette.applications import Starlette
    from starlette.routing import Mount

    outer = Starlette(routes=[Mount("/nets", app)])
    response = ask(outer, "POST", f"/nets{INFER}", *binary(X))
    assert response.status == 200
    refused(ask(outer, "GET", "/nets/v2/models/other"), 404)


def test_answers_come_from_many_clients_at_once(app, folder):
    session = AnytimeSession(folder / "tiny.bundle")
    batches = [np.full((1, 1, 6, 6), k, np.float32) for k in range(40)]

    async def all_at_once():
        return await asyncio.gather(
            *(request(app, "POST", INFER, *binary(x, max_exit=1 + k % 3)) for k, x in enumerate(batches))
        )

    for k, response in enumerate(asyncio.run(all_at_once())):
        assert np.array_equal(logits(response), session.run_to(1 + k % 3, batches[k]).logits)
    assert threading.active_count() < 20


def test_a_graph_that_cannot_run_is_the_servers_fault(app, engine):
    engine.error = BundleError("The bundle's graph 'group_1.onnx' cannot run (no memory); export the bundle again.")
    refused(ask(app, "POST", INFER, JSON), 500, "cannot run")
    counted = app.state.service.metrics.counters("tiny", "1", (1, 2, 3)).outcomes
    assert (counted["failed"], counted["refused"]) == (1, 0)


def test_a_slow_reader_does_not_count_as_a_late_answer(app, engine):
    """Time runs until the answer is written, and the engine is told then, not when the client has taken it."""
    engine.left.clear()
    seen = []

    async def send(message):
        seen.append(len(engine.left))
        if message["type"] == "http.response.body":
            await asyncio.sleep(0.3)

    async def go():
        scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], "query_string": b"", "path_params": {}}
        sent = JSON | {"parameters": {"timeout": "250ms"}}
        messages = iter([{"type": "http.request", "body": json.dumps(sent).encode(), "more_body": False}])

        async def receive():
            return next(messages, None) or await asyncio.Event().wait()

        await app(scope, receive, send)

    asyncio.run(go())
    assert seen == [1, 1]
    text = ask(app, "GET", "/metrics").body.decode()
    assert 'anytime_lct_deadlines_total{kept="true",model="tiny",version="1"} 1.0' in text


NUMBER = 10**4000


@pytest.mark.parametrize(
    "changes",
    [
        {"id": NUMBER},
        {"parameters": {"timeout": NUMBER}},
        {"parameters": {"max_exit": NUMBER}},
        {"parameters": {"max_exit": NUMBER, "mode": "fixed"}},
        {"parameters": {"max_flops": NUMBER}},
        {"parameters": {"min_confidence": NUMBER}},
        {"parameters": {"binary_data_output": NUMBER}},
        {"outputs": [{"name": NUMBER}]},
        {"inputs": [JSON["inputs"][0] | {"shape": [1, NUMBER, NUMBER]}]},
        {"inputs": [JSON["inputs"][0] | {"shape": [2**62] * 8}]},
        {"inputs": [JSON["inputs"][0] | {"data": [NUMBER] * 72}]},
        {"inputs": [JSON["inputs"][0] | {"data": NUMBER}]},
        {"inputs": [JSON["inputs"][0] | {"parameters": {"binary_data_size": NUMBER}}]},
        {"inputs": NUMBER},
    ],
)
def test_numbers_of_any_length_are_the_clients_fault(app, changes):
    refused(ask(app, "POST", INFER, JSON | changes), 400)


def test_errors_name_no_folders_of_the_server(app, engine, folder):
    rewrite(folder / "tiny.bundle", classes=["only one"])
    for path, words in (("tiny", "'manifest.json'"), ("none", "Expected the name of a bundle in")):
        refused = ask(app, "POST", f"/v2/repository/models/{path}/load")
        assert refused.status in (404, 500) and str(folder.parent) not in refused.body.decode()
        assert words in refused.json()["error"] or "tiny.bundle" in refused.json()["error"]


def test_all_models_have_statistics_in_one_answer(app):
    ask(app, "POST", INFER, JSON)
    stats = ask(app, "GET", "/v2/models/stats").json()["model_stats"]
    assert [(each["name"], each["version"], each["execution_count"]) for each in stats] == [
        ("text", "1", 0),
        ("tiny", "1", 1),
    ]


def test_counts_are_of_one_version(tmp_path):
    for version in ("1", "2"):
        write_image_bundle(tmp_path / "tiny" / version)
    engine = FakeEngine()
    app = create_app(service_of(tmp_path, engine))
    ask(app, "POST", "/v2/models/tiny/versions/2/infer", JSON)
    counts = [
        json.loads(ask(app, "GET", f"/v2/models/tiny/versions/{version}/stats").body)["model_stats"][0]
        for version in ("1", "2")
    ]
    assert [each["execution_count"] for each in counts] == [0, 1]
    engine.close()
