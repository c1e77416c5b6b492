"""What can run of docs/deploy without a container engine: the image's steps, its server, board, alerts and manifests.

python .ci/deploy.py        needs Linux, and what .ci/run installs for it

    Dockerfile --RUN, COPY--> a root of its own (chroot) --> /opt/lct --> the last stage's root, read-only
                                                                              |
    board.json, alerts.yaml <--compared with-- /metrics <-- as user 10001 <---+
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import yaml

HOUSE = Path(__file__).parent.parent
KIT = HOUSE / "docs" / "deploy"
# The host's programs and libraries stand for those of the image's Debian, its Python for that of the image.
SHARED = ("/usr", "/etc", "/dev", "/proc", sys.base_prefix)
NETWORK = {
    name: value for name, value in os.environ.items() if re.match("PIP_(INDEX|CERT)|SSL_|https?_proxy", name, re.I)
}
# Fields of KServe's ServingRuntimeSpec that are none of a Kubernetes PodSpec.
OF_KSERVE = {"annotations", "supportedModelFormats", "protocolVersions"}


class Root:
    """A root folder of the image: its own files, and those of SHARED."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        folder.chmod(0o755)
        for name in ("tmp", "bundles", *SHARED):
            self.inside(name).mkdir(parents=True, exist_ok=True)
        for link in ("bin", "lib", "lib64", "sbin"):
            if (path := Path("/", link)).is_symlink():
                (folder / link).symlink_to(path.readlink())

    def inside(self, path: str) -> Path:
        """Return where a path of the image lies here."""
        return self.folder / path.lstrip("/")

    def command(self, words: list[str], env: dict[str, str], *, bundles: Path | None = None) -> list[str]:
        """Return what runs words in this root: with bundles as the image's user, and nothing to write to."""
        mounts = [f"mount --bind {self.folder} {self.folder}"]
        mounts += [f"mount --rbind {path} {self.inside(path)}" for path in dict.fromkeys(SHARED)]
        if bundles is not None:
            mounts += [f"mount --bind {bundles} {self.inside('bundles')}"]
            mounts += [f"mount -o remount,bind,ro {path}" for path in (self.folder, self.inside("bundles"))]
        is_root = os.geteuid() == 0
        user = ["--userspec=10001:10001"] if bundles is not None and is_root else []
        variables = [f"{name}={value}" for name, value in env.items()]
        inner = shlex.join(["chroot", *user, str(self.folder), "env", "-i", *variables, *words])
        space = ["unshare", "--mount", "--propagation", "private", *([] if is_root else ["--user", "--map-root-user"])]
        return [*space, "sh", "-ec", "\n".join([*mounts, f"exec {inner}"])]


def instructions() -> Iterator[tuple[str, str]]:
    """Yield the instructions of the Dockerfile, each with its words."""
    for line in (KIT / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, words = line.partition(" ")
            yield name, words


def build(work: Path) -> tuple[Root, dict[str, Any]]:
    """Follow the Dockerfile; return the root of its last stage, and what it says of the server."""
    stages: dict[str, Root] = {}
    facts: dict[str, Any] = {"ENV": {}}
    path = f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
    root, folder = Root(work / "none"), "/"
    for name, words in instructions():
        if name == "FROM":
            stage = words.partition(" AS ")[2] or "last"
            root = stages[stage] = Root(work / stage)
        elif name == "WORKDIR":
            folder = words
            root.inside(folder).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = words.split()
            if sources[0].startswith("--from="):
                stage = stages[sources.pop(0).removeprefix("--from=")]
                shutil.copytree(stage.inside(sources[0]), root.inside(target), symlinks=True)
            for source in (HOUSE / each for each in sources if not each.startswith("/")):
                to = root.inside(folder) / target
                shutil.copytree(source, to, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, to)
        elif name == "RUN":
            env = {"PATH": path, "HOME": "/tmp", **NETWORK}
            begun = time.monotonic()
            subprocess.run(root.command(["sh", "-ec", f"cd {folder}\n{words}"], env), check=True)
            print(f"RUN {words}: {time.monotonic() - begun:.0f} s")
        elif name == "ENV":
            facts["ENV"] = dict(each.split("=", 1) for each in words.replace("$PATH", path).split())
        else:
            facts[name] = json.loads(words[words.index("[") :]) if "[" in words else words
    return stages["last"], facts


def check_server(root: Root, facts: dict[str, Any], bundles: Path) -> str:
    """Serve bundles by the image's commands, as its user on a read-only root; return the metrics."""
    packages = {path.name for path in root.inside("/opt/lct").glob("lib/python*/site-packages/*")}
    assert not packages & {"torch", "pip", "onnx", "matplotlib"}, packages
    size = sum(path.stat().st_size for path in root.inside("/opt/lct").rglob("*") if path.is_file())
    print(f"/opt/lct: {size / 1e6:.0f} MB")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert facts["EXPOSE"] in facts["ENV"]["HEALTH"] and facts["USER"] == "10001:10001"
    env = {**facts["ENV"], "HEALTH": facts["ENV"]["HEALTH"].replace(facts["EXPOSE"], str(port))}
    paths = "/x /tmp/x /bundles/x /opt/lct/x"
    write = ["sh", "-c", f"touch {paths} 2>/dev/null; ls {paths} 2>/dev/null; id -u"]
    tried = subprocess.run(root.command(write, env, bundles=bundles), capture_output=True, text=True, check=True)
    assert tried.stdout.split() == (["10001"] if os.geteuid() == 0 else ["0"]), tried.stdout  # 0 inside is us outside
    arguments = [*facts["ENTRYPOINT"], *facts["CMD"], "--port", str(port)]
    with subprocess.Popen(root.command(arguments, env, bundles=bundles), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        print(server.stdout.readline().strip())
        health = facts["HEALTHCHECK"]
        subprocess.run(root.command(health, env, bundles=bundles), check=True)
        zeros = {"name": "input", "datatype": "FP32", "shape": [1, 1, 6, 6], "data": [0.0] * 36}
        body = json.dumps({"inputs": [zeros], "parameters": {"timeout": "10s"}}).encode()
        address = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(f"{address}/v2/models/digits/infer", body, timeout=10).close()
        with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        server.send_signal(signal.SIGTERM)
        assert server.wait(40) == 0
        assert subprocess.run(root.command(health, env, bundles=bundles), stderr=subprocess.DEVNULL).returncode != 0
    return metrics


def queries() -> Iterator[tuple[str, str]]:
    """Yield the queries of the board and of the alerts, each with the title of its panel or the alert's name."""
    board = json.loads((KIT / "grafana" / "board.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$model", ".+")
    for group in yaml.safe_load((KIT / "alerts.yaml").read_text(encoding="utf-8"))["groups"]:
        yield from ((rule["alert"], rule["expr"]) for rule in group["rules"])


def check_queries(metrics: str) -> None:
    """Compare the queries with PromQL's grammar, and with the names and labels of the metrics."""
    labels: dict[str, set[str]] = {}
    for name in re.findall(r"^# TYPE (\S+)", metrics, re.MULTILINE):
        labels[name] = set()
    for name, inside in re.findall(r"^(\w+)(?:\{(.*)\})? ", metrics, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', inside))
    every = {"job", "instance"}  # which Prometheus adds
    for title, query in queries():
        promql_parser.parse(query)
        for name, matchers in re.findall(r"\b((?:anytime_lct|process)_\w+)(?:\{(.*?)\})?", query):
            used = set(re.findall(r"(\w+)=", matchers)) - every
            assert name in labels and used <= labels[name], (title, name, used)
        for groups in re.findall(r"(?:by|on) \((.*?)\)", query):
            for group in filter(None, groups.split(", ")):
                assert group in every or any(group in names for names in labels.values()), (title, group)


def check_alerts() -> None:
    """Ask promtool, where it is installed, whether the alerts come when they should."""
    if promtool := shutil.which("promtool"):
        subprocess.run([promtool, "check", "config", str(KIT / "prometheus.yaml")], check=True)
        subprocess.run([promtool, "test", "rules", str(HOUSE / ".ci" / "alerts.yaml")], check=True)
    else:
        print("skipped: when the alerts come, which promtool tests (Debian's prometheus)")


def check_manifests() -> None:
    """Compare the manifests with the schemas of Kubernetes; KServe's runtime is a Pod's containers with some more."""
    for path in sorted(KIT.glob("k*/*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if manifest["kind"] == "InferenceService":
                continue
            if manifest["kind"] == "ClusterServingRuntime":
                pod = {name: value for name, value in manifest["spec"].items() if name not in OF_KSERVE}
                manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": manifest["metadata"], "spec": pod}
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
            print(f"{path.name}: {manifest['kind']}")


def main() -> None:
    """Check all, or say what the kernel forbids."""
    sys.path.insert(0, str(HOUSE / "tests"))
    from bundles import write_image_bundle

    check_manifests()
    check_alerts()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        work.chmod(0o755)
        probe = subprocess.run(Root(work / "probe").command(["true"], {}), capture_output=True, text=True)
        if probe.returncode:
            print(
                f"skipped: the image's steps need mount namespaces, which this kernel forbids: {probe.stderr.strip()}"
            )
            return
        bundles = work / "in"
        bundles.mkdir()
        write_image_bundle(bundles / "digits")
        for path in (bundles, *bundles.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        check_queries(check_server(*build(work), bundles))
    print("docs/deploy holds.")


if __name__ == "__main__":
    main()
