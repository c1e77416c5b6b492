"""The server as an app: the protocol's paths, bounds on bodies, clients that are slow or gone, bundles read again."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import shutil
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from asgi import ask, binary, logits, request
from bundles import rewrite, spoil, write_image_bundle, write_text_bundle
from fake_engine import FakeEngine, open_repository
from PIL import Image

from anytime_lct.errors import BundleError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask, Budget
from anytime_lct.pixels import fitting_bytes
from anytime_lct.runtime import preprocess
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.access import Access
from anytime_lct.serving.http import infer
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.limits import DEFAULT_LIMITS, Allowance, Limits
from anytime_lct.serving.metrics import OUTCOMES, Metrics
from anytime_lct.serving.request import Overloaded, Refusal
from anytime_lct.serving.scan import scan
from anytime_lct.serving.service import Service
from anytime_lct.serving.v2 import protocol

X = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
JSON = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 1, 6, 6], "data": X.tolist()}]}
INFER = "/v2/models/tiny/infer"
ANSWER = 2 * 5 * 24  # two samples, five classes, 24 bytes a number of JSON


@pytest.fixture
def folder(tmp_path):
    write_image_bundle(tmp_path / "tiny.bundle")
    write_text_bundle(tmp_path / "text")
    return tmp_path


@pytest.fixture
def engine():
    with FakeEngine() as engine:
        yield engine


ADMIN = Access(allow_admin=True)


def service_of(folder, engine, limits=DEFAULT_LIMITS, default=DEFAULT_ASK):
    return Service(open_repository(folder), engine, Metrics(), limits, default)


@pytest.fixture
def app(folder, engine):
    return create_app(service_of(folder, engine), access=ADMIN)


def bounded(folder, engine, **limits):
    return create_app(service_of(folder, engine, limits=Limits(**limits)), access=ADMIN)


def refused(response, status, words=""):
    assert response.status == status, response.body
    assert list(response.json()) == ["error"] and words in response.json()["error"]
    return response


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


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_bodies_are_the_same_bodies(app, name, pack):
    body, headers = binary(X)
    plain = ask(app, "POST", INFER, body, headers)
    packed = ask(app, "POST", INFER, pack(body), headers | {"Content-Encoding": name})
    assert np.array_equal(logits(packed), logits(plain))
    pieces = [pack(body)[:5], pack(body)[5:]]
    assert np.array_equal(logits(ask(app, "POST", INFER, pieces, headers | {"Content-Encoding": name})), logits(plain))


def test_packed_bodies_beyond_a_step_are_whole(app):
    text = json.dumps(JSON).encode()
    padded = text[:-1] + b" " * 3_000_000 + b"}"
    assert ask(app, "POST", INFER, gzip.compress(padded), {"Content-Encoding": "gzip"}).status == 200


@pytest.mark.parametrize(
    ("body", "name", "status"),
    [
        pytest.param(b"nonsense", "gzip", 400, id="not packed"),
        pytest.param(gzip.compress(b"{}")[:-4], "gzip", 400, id="cut short"),
        pytest.param(gzip.compress(b"{}") + b"more", "gzip", 400, id="more behind it"),
        pytest.param(b"", "gzip", 400, id="empty"),
        pytest.param(zlib.compress(b"{}"), "br", 415, id="unknown packing"),
        pytest.param(b"{}", "gzip, gzip", 415, id="packed twice"),
        pytest.param(b"{}", "", 400, id="an empty name is none"),
    ],
)
def test_badly_packed_bodies_are_refused(app, body, name, status):
    refused(ask(app, "POST", INFER, body, {"Content-Encoding": name}), status)


def test_bombs_are_put_out_at_the_limit(folder, engine):
    app = bounded(folder, engine, body=1 << 20)
    bomb = gzip.compress(bytes(50 << 20))
    refused(ask(app, "POST", INFER, bomb, {"Content-Encoding": "gzip"}), 413, "at most 1048576 bytes")
    assert app.state.service.allowance.used == 0


def test_answers_are_packed_where_that_is_wanted_and_worthwhile(app):
    many = np.zeros((200, 1, 6, 6), np.float32)
    sent = {"inputs": [{"name": "input", "datatype": "FP32", "shape": many.shape, "data": many.tolist()}]}
    plain = ask(app, "POST", INFER, sent)
    assert "content-encoding" not in plain.headers
    for accepted, unpack in (
        ("gzip", gzip.decompress),
        ("deflate", zlib.decompress),
        ("br, gzip;q=0.5", gzip.decompress),
    ):
        packed = ask(app, "POST", INFER, sent, {"Accept-Encoding": accepted})
        assert packed.headers["content-encoding"] == accepted.partition(";")[0].split()[-1]
        assert json.loads(unpack(packed.body))["outputs"] == plain.json()["outputs"]
        assert len(packed.body) < len(plain.body) / 2
    assert "content-encoding" not in ask(app, "POST", INFER, sent, {"Accept-Encoding": "gzip;q=0"}).headers
    assert "content-encoding" not in ask(app, "POST", INFER, JSON, {"Accept-Encoding": "gzip"}).headers


def test_large_answers_come_whole(folder, engine):
    app = bounded(folder, engine, characters=200_000)
    sent = {"inputs": [{"name": "input", "datatype": "INT64", "shape": [1, 50_000], "data": [1] * 50_000}]}
    response = ask(app, "POST", "/v2/models/text/infer", sent)
    assert len(response.json()["outputs"][0]["data"]) == 250_000
    assert int(response.headers["content-length"]) == len(response.body)


def test_bodies_that_are_too_large_are_refused_before_or_on_the_way(folder, engine):
    app = bounded(folder, engine, body=1000)
    response = refused(ask(app, "POST", INFER, b"", {"Content-Length": "1001"}), 413, "at most 1000 bytes")
    assert response.headers["connection"] == "close"
    refused(ask(app, "POST", INFER, [b"x" * 600] * 2), 413)
    refused(ask(app, "POST", "/v2/repository/models/tiny/load", [b"x" * 600] * 2), 413)
    assert app.state.service.allowance.used == 0


def test_slow_bodies_are_refused(folder, engine):
    app = bounded(folder, engine, read_seconds=0.05)
    refused(ask(app, "POST", INFER, [b"{"] * 10, then=0.2), 408, "within 0.05 s")
    assert app.state.service.allowance.used == 0


def test_bytes_of_all_requests_together_are_bounded(folder, engine):
    body, headers = binary(X)
    session = AnytimeSession(folder / "tiny.bundle")
    session.warm()
    hidden = session.buffer_bytes(X)
    assert hidden > 2 * 4 * (36 + 4 * 36 + 4 * 36)  # the input, and behind both cuts
    app = bounded(folder, engine, in_flight=len(body) + ANSWER + hidden + 100)

    async def two():
        engine.gate.clear()
        first = asyncio.create_task(request(app, "POST", INFER, body, headers))
        while not engine.asked:
            await asyncio.sleep(0.001)
        second = await request(app, "POST", INFER, body, headers)
        engine.gate.set()
        return await first, second

    first, second = asyncio.run(two())
    assert first.status == 200
    assert refused(second, 503).headers["retry-after"] == "1"
    assert ask(app, "POST", INFER, body, headers).status == 200


def test_an_answer_that_would_take_too_many_bytes_is_not_begun(folder, engine):
    sent = {"inputs": [{"name": "input", "datatype": "INT64", "shape": [1, 5000], "data": [1] * 5000}]}
    app = bounded(folder, engine, in_flight=150_000)  # the body and its array take 55 thousand, 25,000 numbers more
    refused(ask(app, "POST", "/v2/models/text/infer", sent), 413, "at most 112500 bytes")
    assert not engine.asked
    assert app.state.service.allowance.used == 0
    sent["outputs"] = [{"name": "logits", "parameters": {"binary_data": True}}]
    app = bounded(folder, engine, in_flight=1_200_000)  # the hidden tensors and logits of the walk take 600 thousand
    assert ask(app, "POST", "/v2/models/text/infer", sent).status == 200
    assert app.state.service.allowance.used == 0


def test_large_requests_leave_bytes_to_small_ones():
    allowance = Allowance(1 << 28)
    with allowance.hold() as one, allowance.hold() as other, allowance.hold() as middle, allowance.hold() as small:
        one.take(128 << 20)
        with pytest.raises(Overloaded):
            other.take(65 << 20)
        other.take(64 << 20)
        with pytest.raises(Overloaded):
            one.take(1)
        with pytest.raises(Refusal, match="at most 201326592 bytes"):  # it would not fit alone: 413
            one.take(65 << 20)
        while True:
            try:
                middle.take(1 << 16)
            except Overloaded:
                break
        for _ in range(100):
            with pytest.raises(Overloaded):
                middle.take(1 << 16)
            small.take(100)
    assert allowance.used == 0


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


def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing_behind(app, engine):
    async def leave():
        stream = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(stream)

        async def send(message):
            raise AssertionError("nobody is there to be answered")

        await app({"type": "http", "method": "POST", "path": INFER, "headers": []}, receive, send)

    asyncio.run(leave())
    assert app.state.service.allowance.used == 0 and not engine.asked


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


def test_names_and_versions_come_from_folders(folder, engine):
    shutil.copytree(folder / "text", folder / "many" / "2")
    shutil.copytree(folder / "text", folder / "many" / "10")
    (folder / "notes").mkdir()
    app = create_app(service_of(folder, engine))
    index = ask(app, "POST", "/v2/repository/index").json()
    assert [(row["name"], row["version"]) for row in index] == [
        ("many", "2"), ("many", "10"), ("text", "1"), ("tiny", "1"),
    ]  # fmt: skip
    sent = {"inputs": [{"name": "input", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
    assert ask(app, "POST", "/v2/models/many/infer", sent).json()["model_version"] == "10"
    assert ask(app, "POST", "/v2/models/many/versions/2/infer", sent).json()["model_version"] == "2"
    refused(ask(app, "POST", "/v2/models/many/versions/1/infer", sent), 404, "2, 10")
    assert list(scan(folder / "tiny.bundle")[0]) == [("tiny", "1")]


@pytest.mark.parametrize("name", ["empty", "no name.bundle", "absent"])
def test_folders_that_cannot_be_served_are_refused(tmp_path, name):
    if name == "no name.bundle":
        write_image_bundle(tmp_path / "in" / name)
    elif name == "empty":
        (tmp_path / "in").mkdir()
    with pytest.raises(BundleError):
        open_repository(tmp_path / "in")


def test_two_bundles_of_one_name_are_refused(folder):
    shutil.copytree(folder / "tiny.bundle", folder / "tiny")
    paths, problems = scan(folder)
    assert list(paths) == [("text", "1")] and "one bundle named 'tiny'" in str(problems["tiny", "1"])


def test_an_altered_bundle_is_not_served(folder):
    spoil(folder / "tiny.bundle")
    with pytest.raises(BundleError, match="altered"):
        open_repository(folder / "tiny.bundle")
    shutil.rmtree(folder / "text")
    with pytest.raises(BundleError, match="altered"):
        open_repository(folder)


def test_bundles_are_read_again_while_requests_are_with_the_old_ones(folder, engine):
    service = service_of(folder, engine)
    app, first = create_app(service, access=ADMIN), service.find("tiny")
    load = "/v2/repository/models/tiny/load"
    assert ask(app, "POST", load).json() == {} and service.find("tiny") is first  # nothing has changed

    async def reload():
        engine.gate.clear()
        old = asyncio.create_task(request(app, "POST", INFER, *binary(X)))
        while not engine.asked:
            await asyncio.sleep(0.001)
        rewrite(folder / "tiny.bundle", classes=["null", "eins", "zwei"])
        assert (await request(app, "POST", load)).status == 200
        engine.gate.set()
        return await old

    before = asyncio.run(reload())
    assert before.status == 200 and service.find("tiny") is not first
    assert ask(app, "GET", "/v2/models/tiny/exits").json()["classes"] == ["null", "eins", "zwei"]
    assert np.array_equal(logits(ask(app, "POST", INFER, *binary(X))), logits(before))


def test_files_that_change_do_not_change_answers_before_they_are_read_again(folder, app):
    before = logits(ask(app, "POST", INFER, *binary(X, max_exit=1)))
    for graph in (folder / "tiny.bundle").glob("*.onnx"):
        graph.write_bytes(b"")
    for exit in (1, 2, 3):
        assert ask(app, "POST", INFER, *binary(X, max_exit=exit)).status == 200
    assert np.array_equal(logits(ask(app, "POST", INFER, *binary(X, max_exit=1))), before)


def test_a_bundle_that_is_being_written_is_not_seen(folder):
    shutil.copytree(folder / "text", folder / ".text.123.part")
    assert set(scan(folder)[0]) == {("tiny", "1"), ("text", "1")}


def test_a_broken_bundle_does_not_take_the_place_of_a_whole_one(folder, app):
    rewrite(folder / "tiny.bundle", classes=["only one"])
    refused(ask(app, "POST", "/v2/repository/models/tiny/load"), 500, "damaged")
    assert ask(app, "POST", INFER, JSON).status == 200


def test_bundles_come_and_go_with_their_folders(folder, app):
    shutil.copytree(folder / "tiny.bundle", folder / "twin")
    assert ask(app, "POST", "/v2/repository/models/twin/load").status == 200
    assert ask(app, "GET", "/v2/models/twin/ready").status == 200
    shutil.rmtree(folder / "twin")
    assert ask(app, "POST", "/v2/repository/models/twin/load").status == 200
    refused(ask(app, "GET", "/v2/models/twin/ready"), 404)
    refused(ask(app, "POST", "/v2/repository/models/twin/load"), 404)
    refused(ask(app, "POST", "/v2/repository/models/tiny/load", {"parameters": {"config": "{}"}}), 400)


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


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [("FP32", [1, 1, 6, 6], [0.5] * 20_000), ("UINT8", [1, 150, 150, 1], [7] * 22_500)],
)
def test_what_takes_time_to_read_is_read_beside_the_event_loop(app, monkeypatch, datatype, shape, data):
    threads = []

    def record(function):
        def recorded(*arguments):
            threads.append(threading.current_thread())
            return function(*arguments)

        return recorded

    monkeypatch.setattr(infer, "read_request", record(infer.read_request))
    monkeypatch.setattr(protocol, "read_input", record(protocol.read_input))
    ask(app, "POST", INFER, {"inputs": [{"name": "input", "datatype": datatype, "shape": shape, "data": data}]})
    assert len(threads) == 2 and threading.main_thread() not in threads
    threads.clear()
    ask(app, "POST", INFER, JSON)
    assert threads == [threading.main_thread()] * 2


def image_file(height, width):
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_image_files_are_measured_and_decoded_beside_the_event_loop_within_the_allowance(folder, engine, monkeypatch):
    """Their memory is held while they are decoded, one request at a time, and given back when they are."""
    service = service_of(folder, engine)
    app, content = create_app(service, access=ADMIN), image_file(200, 300)
    calls = []

    def record(function):
        def recorded(*arguments):
            calls.append((threading.current_thread(), service.allowance.used))
            return function(*arguments)

        return recorded

    monkeypatch.setattr(protocol, "decoding_size", record(protocol.decoding_size))
    monkeypatch.setattr(protocol, "decode", record(protocol.decode))

    async def go():
        raw = {"Inference-Header-Content-Length": "0"}
        return await asyncio.gather(*(request(app, "POST", INFER, content, raw) for _ in range(3)))

    assert [response.status for response in asyncio.run(go())] == [200] * 3
    assert threading.main_thread() not in {thread for thread, _ in calls}
    waiting, decoding = [used for _, used in calls[::2]], [used for _, used in calls[1::2]]
    assert len(decoding) == 3 and all(used < 200 * 300 for used in waiting)
    assert all(200 * 300 * 14 < used < 2 * 200 * 300 * 14 for used in decoding)
    assert service.allowance.used == 0


def test_pixels_hold_memory_while_they_are_resized(folder, engine, monkeypatch):
    service, pixels = service_of(folder, engine), np.zeros((2, 300, 400, 1), np.uint8)
    used = []

    def check_batch(x, manifest):
        used.append(service.allowance.used)
        return checked(x, manifest)

    checked = preprocess.check_batch
    monkeypatch.setattr(preprocess, "check_batch", check_batch)
    entry = {"name": "input", "datatype": "UINT8", "shape": pixels.shape}
    head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": pixels.nbytes}}]}).encode()
    body, headers = head + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    assert ask(create_app(service), "POST", INFER, body, headers).status == 200
    one = fitting_bytes((300, 400, 1), 6, 6)
    assert 300 * 400 < one < 300 * 500 and used[0] > one + pixels.nbytes and service.allowance.used == 0
    few = create_app(service_of(folder, engine, limits=Limits(in_flight=400_000)))
    refused(ask(few, "POST", INFER, body, headers), 413)


def test_image_files_that_come_too_late_or_have_no_memory_are_shed_undecoded(folder, engine, monkeypatch):
    content, raw = image_file(200, 300), {"Inference-Header-Content-Length": "0"}
    late = create_app(service_of(folder, engine, default=Ask(timeout=1e-6)), access=ADMIN)
    monkeypatch.setattr(protocol, "decode", lambda *_: pytest.fail("decoded"))
    assert "before the deadline" in ask(late, "POST", INFER, content, raw).json()["error"]
    service = service_of(folder, engine, limits=Limits(in_flight=2_000_000))
    with service.allowance.hold() as other:
        other.take(1_000_000)
        response = refused(ask(create_app(service), "POST", INFER, content, raw), 503, "bytes of requests at a time")
    assert response.headers["retry-after"] == "1"


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
