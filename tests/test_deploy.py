"""The kit of docs/deploy: its files belong together, and its commands are the server's; .ci/deploy.py runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from anytime_lct.cli.main import app

KIT = Path(__file__).parent.parent / "docs" / "deploy"
IMAGE = "anytime-lct:local"


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KIT / name).read_text(encoding="utf-8")))


SERVER = manifests("kubernetes/server.yaml")[0]["spec"]["template"]["spec"]
RUNTIME = manifests("kserve/runtime.yaml")[0]["spec"]
COMPOSE = manifests("compose.yaml")[0]["services"]
DOCKERFILE = (KIT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        SERVER["containers"][0]["args"],
        RUNTIME["containers"][0]["args"],
        COMPOSE["lct"]["command"],
        json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0]),
    ],
    ids=["kubernetes", "kserve", "compose", "image"],
)
def test_the_servers_are_started_with_options_that_exist(arguments):
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    with serve.make_context("serve", list(arguments)) as context:
        assert not context.args and context.params["host"] == "0.0.0.0"  # else nobody could reach it


@pytest.mark.parametrize("pod", [SERVER, RUNTIME], ids=["kubernetes", "kserve"])
def test_the_pods_can_write_nothing_and_end_in_time(pod):
    (server,) = pod["containers"]
    assert server["image"] == IMAGE == COMPOSE["lct"]["image"] and f"--tag {IMAGE}" in DOCKERFILE
    assert server["securityContext"]["readOnlyRootFilesystem"] and COMPOSE["lct"]["read_only"]
    assert server["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    probes = [server[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
    assert probes == ["/v2/health/ready", "/v2/health/live", "/v2/health/ready"]
    assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    assert f"--cores={server['resources']['limits']['cpu']}" in server["args"]


@pytest.mark.parametrize("pod", [SERVER, RUNTIME], ids=["kubernetes", "kserve"])
def test_clients_of_a_cluster_may_call_the_server_by_names_with_dots(pod):
    assert "--allow-host=*" in pod["containers"][0]["args"]


def test_the_volumes_are_those_that_are_mounted():
    mounted = {each["name"]: each["mountPath"] for each in SERVER["containers"][0]["volumeMounts"]}
    assert set(mounted) == {each["name"] for each in SERVER["volumes"]}
    for service in COMPOSE.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("${BUNDLES") or (KIT / source).is_file(), source
    assert KIT / COMPOSE["lct"]["build"]["dockerfile"].removeprefix("docs/deploy/") == KIT / "Dockerfile"


def test_the_image_is_built_from_what_its_context_holds():
    ignored = (KIT / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert {f"!{name}" for words in copied for name in words.split()} == {line for line in ignored if line[0] == "!"}


def test_prometheus_and_the_board_know_each_other():
    source = manifests("grafana/datasources.yaml")[0]["datasources"][0]
    board = json.loads((KIT / "grafana" / "board.json").read_text(encoding="utf-8"))
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    assert f"{source['url']}".removeprefix("http://").split(":")[0] in COMPOSE
    prometheus = manifests("prometheus.yaml")[0]
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    mounted = {volume.split(":")[1] for volume in COMPOSE["prometheus"]["volumes"]}
    assert mounted == {f"/etc/prometheus/{name}" for name in ("prometheus.yml", *prometheus["rule_files"])}
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["lct:8000"] and "lct" in COMPOSE
    boards = manifests("grafana/dashboards.yaml")[0]["providers"][0]["options"]["path"]
    assert any(volume.startswith("./grafana/board.json:" + boards) for volume in COMPOSE["grafana"]["volumes"])
    cells = [panel["gridPos"] for panel in board["panels"]]
    assert all(cell["x"] + cell["w"] <= 24 for cell in cells)
    assert len({panel["id"] for panel in board["panels"]}) == len(cells) == len({(c["x"], c["y"]) for c in cells})


def test_kserve_finds_the_runtime_of_the_service():
    (service,) = manifests("kserve/service.yaml")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == manifests("kserve/runtime.yaml")[0]["metadata"]["name"]
    offered = [{key: each[key] for key in ("name", "version")} for each in RUNTIME["supportedModelFormats"]]
    assert model["modelFormat"] in offered and model["protocolVersion"] in RUNTIME["protocolVersions"]
