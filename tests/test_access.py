"""Who may ask: hosts and pages of others are refused, CORS and administration are options, every request has an id."""

from __future__ import annotations

import logging

import pytest
from asgi import ask
from bundles import write_image_bundle
from fake_engine import FakeEngine, open_repository

from anytime_lct.exits.budget import DEFAULT_ASK
from anytime_lct.serving.access import Access, is_loopback
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.http.guard import guarded
from anytime_lct.serving.keys import Keys
from anytime_lct.serving.limits import DEFAULT_LIMITS
from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.service import Service

LOAD = "/v2/repository/models/tiny/load"
HERE = {"Host": "127.0.0.1:8000"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    write_image_bundle(folder / "tiny")
    repository = open_repository(folder)
    return Service(repository, FakeEngine(), Metrics(), DEFAULT_LIMITS, DEFAULT_ASK)


def app_of(service, **access):
    access = Access(**access)
    return guarded(create_app(service, access=access), access)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("10.1.2.3", 200),
        ("localhost:8000", 200),
        ("digits:8000", 200),  # a name without a dot belongs to no site
        ("LCT.example:8000", 200),
        ("lct.example.", 200),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("1.2.3.4.5", 403),
        ("lct.example.evil.example", 403),
        ("localhost.evil.example:8000", 403),
    ],
)
def test_only_hosts_that_the_server_knows_are_served(service, host, status):
    response = ask(app_of(service, hosts=("lct.example",)), "GET", "/v2/models/tiny", headers={"Host": host})
    assert response.status == status
    assert status == 200 or "--allow-host" in response.json()["error"]


def test_every_host_is_served_where_that_is_wanted_and_a_request_without_one(service):
    assert ask(app_of(service, hosts=("*",)), "GET", "/v2", headers={"Host": "any.example"}).status == 200
    assert ask(app_of(service), "GET", "/v2").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9000", "http://127.0.0.1"])
def test_pages_of_others_may_not_ask(service, origin):
    app = app_of(service, allow_admin=True)
    for method, path in (("POST", LOAD), ("POST", "/v2/models/tiny/infer"), ("GET", "/v2"), ("OPTIONS", LOAD)):
        response = ask(app, method, path, headers=HERE | {"Origin": origin})
        assert response.status == 403 and "--cors-origin" in response.json()["error"]
        assert "access-control-allow-origin" not in response.headers


def test_the_servers_own_page_may_ask(service):
    own = {"Origin": "http://127.0.0.1:8000"}
    assert ask(app_of(service, allow_admin=True), "POST", LOAD, headers=HERE | own).status == 200


def test_pages_of_named_sites_may_ask(service):
    app = app_of(service, origins=("https://a.example",))
    origin = HERE | {"Origin": "https://a.example"}
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    first = ask(app, "OPTIONS", "/v2/models/tiny/infer", headers=origin | wanted)
    assert first.status == 200 and "POST" in first.headers["access-control-allow-methods"]
    response = ask(app, "GET", "/v2", headers=origin)
    assert response.headers["access-control-allow-origin"] == "https://a.example"
    assert ask(app, "GET", "/v2", headers=HERE | {"Origin": "https://b.example"}).status == 403


@pytest.mark.parametrize(
    ("access", "client", "words", "status"),
    [
        ({}, "127.0.0.1", "", 403),
        ({"allow_admin": True}, "10.0.0.7", "", 200),
        ({"key": "secret"}, "127.0.0.1", "Bearer secret", 200),
        ({"key": "secret"}, "::ffff:127.0.0.1", "Bearer secret", 200),
        ({"key": "secret"}, "127.0.0.1", "Bearer other", 403),
        ({"key": "secret"}, "127.0.0.1", "", 403),
        ({"key": "secret"}, "10.0.0.7", "Bearer secret", 403),
    ],
)
@pytest.mark.parametrize("verb", ["load", "unload"])
def test_loading_needs_the_flag_or_the_key(service, access, client, words, status, verb):
    app = app_of(service, **access)

    async def from_client(scope, receive, send):
        await app(scope | {"client": (client, 5000)}, receive, send)

    headers = HERE | ({"Authorization": words} if words else {})
    assert ask(from_client, "POST", f"/v2/repository/models/tiny/{verb}", headers=headers).status == status
    if verb == "unload" and status == 200:
        assert ask(from_client, "POST", LOAD, headers=headers).status == 200
    extensions = ask(app, "GET", "/v2").json()["extensions"]
    assert ("model_repository" in extensions) == bool(access)


def test_addresses_of_this_machine():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("10.0.0.1", "::", "0.0.0.0", "localhost", "", "::ffff:10.0.0.1")))


def test_a_request_has_an_id_and_a_line_in_the_log(service, caplog):
    app = app_of(service, log=True)
    with caplog.at_level(logging.INFO, "anytime_lct.access"):
        own = ask(app, "GET", "/v2", headers=HERE | {"X-Request-Id": "a-7"})
        new = ask(app, "GET", "/v2/mo\ndels", headers=HERE | {"X-Request-Id": "bad id\n"})
        refused = ask(app, "GET", "/v2", headers={"Host": "evil.example"})
    assert own.headers["x-request-id"] == "a-7" and len(new.headers["x-request-id"]) == 16
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith('- "GET /v2" 200 ') and lines[0].endswith("id=a-7")
    assert '"GET /v2/mo\\ndels" 404' in lines[1]
    assert '"GET /v2" 403' in lines[2] and lines[2].endswith(refused.headers["x-request-id"])


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("sent", "is_plain"),
    [
        (TRACE, True),
        (TRACE.upper(), False),
        (TRACE.replace("0af7651916cd43dd8448eb211c80319c", 32 * "0"), False),
        (TRACE.replace("b7ad6b7169203331", 16 * "0"), False),
        ("ff" + TRACE[2:], False),
        (TRACE + "-more", False),
        ("x", False),
    ],
)
def test_a_trace_goes_into_the_log_and_back(service, caplog, sent, is_plain):
    with caplog.at_level(logging.INFO, "anytime_lct.access"):
        response = ask(app_of(service, log=True), "GET", "/v2", headers=HERE | {"traceparent": sent})
    assert response.headers.get("traceparent") == (sent if is_plain else None)
    assert caplog.records[0].getMessage().endswith(f" traceparent={sent}") == is_plain


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("# one client\nthe-key-of-one-client\n\nthe-key-of-another\n")
    return Keys(path)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": "the-key-of-one-client"}, 200),
        ({"Authorization": "Bearer the-key-of-another"}, 200),
        ({"Authorization": "bearer  the-key-of-another"}, 200),
        ({"Authorization": "Basic the-key-of-another"}, 401),
        ({"Authorization": "Bearer the-key-of-anothe"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": "# one client"}, 401),
        ({"X-API-Key": "the-key-of-one-client", "Authorization": "Bearer another"}, 200),
    ],
)
def test_clients_need_a_key(service, keys, headers, status):
    app = app_of(service, keys=keys)
    for method, path in (("GET", "/v2"), ("GET", "/metrics"), ("GET", "/v2/health/live"), ("GET", "/nowhere")):
        response = ask(app, method, path, headers=HERE | headers)
        assert response.status == (404 if path == "/nowhere" and status == 200 else status)
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"
            assert ("none" if not headers or "Basic" in str(headers) else "another") in response.json()["error"]
    assert ask(app, "GET", "/", headers=HERE).status == 200  # the page, which asks for the key
    assert ask(app, "POST", "/v2/models/tiny/infer", headers=HERE).status == 401


def test_probes_may_ask_without_a_key(service, keys):
    app = app_of(service, keys=keys, keyless=("health",))
    assert ask(app, "GET", "/v2/health/ready", headers=HERE).status == 200
    assert ask(app, "GET", "/metrics", headers=HERE).status == 401
    assert ask(app_of(service, keys=keys, keyless=("metrics",)), "GET", "/metrics", headers=HERE).status == 200


def test_pages_of_named_sites_are_told_that_a_key_is_missing(service, keys):
    app, origin = app_of(service, keys=keys, origins=("https://a.example",)), {"Origin": "https://a.example"}
    wanted = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key,authorization"}
    assert ask(app, "OPTIONS", "/v2", headers=HERE | origin | wanted).status == 200
    response = ask(app, "GET", "/v2", headers=HERE | origin)
    assert response.status == 401 and response.headers["access-control-allow-origin"] == "https://a.example"


def test_a_proxy_may_show_the_server_below_a_path(service, keys):
    app = app_of(service, root_path="/lct", keys=keys, keyless=("health",))
    key = {"X-API-Key": "the-key-of-another"}
    first = ask(app, "GET", "/lct", headers=HERE)
    assert (first.status, first.headers["location"]) == (308, "/lct/")
    assert b'href="openapi.json"' in ask(app, "GET", "/lct/", headers=HERE).body
    for root in ("", "/lct"):  # whether or not the proxy takes the path away
        assert ask(app, "GET", f"{root}/v2/models/tiny", headers=HERE | key).status == 200
        assert ask(app, "GET", f"{root}/v2/health/live", headers=HERE).status == 200
        assert ask(app, "POST", f"{root}/v2/models/tiny/infer", headers=HERE | key).status == 400
        assert ask(app, "GET", f"{root}/v2", headers=HERE).status == 401
    assert ask(app, "GET", "/lctv2", headers=HERE | key).status == 404
    described = ask(app, "GET", "/lct/openapi.json", headers=HERE | key).json()
    assert described["servers"] == [{"url": "/lct"}] and {"bearer": []} in described["security"]
    assert "security" not in ask(app_of(service), "GET", "/openapi.json", headers=HERE).json()


def test_no_line_is_written_without_the_option(service, caplog):
    with caplog.at_level(logging.INFO, "anytime_lct.access"):
        ask(app_of(service), "GET", "/v2", headers=HERE)
    assert not caplog.records
