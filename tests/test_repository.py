"""The bundles in service: their names and versions, and how they are read again while requests are with them."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import pytest
from asgi import ask, binary, logits, request
from bundles import rewrite, spoil, write_image_bundle
from fake_engine import open_repository
from serving_apps import ADMIN, INFER, JSON, X, refused, service_of

from anytime_lct.errors import BundleError
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.scan import scan


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
