"""Exported graphs say what torch says at every exit, and a bundle is there whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporting import export
from torch import Tensor, nn

from anytime_lct.errors import ExportError
from anytime_lct.exits.bundle import Bundle
from anytime_lct.exits.profile import Cost, Exit, Latency, Profile, Quality
from anytime_lct.export import parity
from anytime_lct.models import networks as models
from anytime_lct.network import LCTNetwork
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.task import Facts

IMAGES = Facts("squares", "classification", (1, 8, 8), 3, ("a", "b", "c"), (0.5,), (0.25,))
VECTORS = Facts("points", "classification", (1, 2, 2), 2, ("no", "yes"))
TEXT = Facts("words", "language-model", (12,), 7, tuple("abcdefg"))


def image_network() -> LCTNetwork:
    """Norms behind a convolution and in front of a group, with statistics unlike those of a fresh norm."""
    torch.manual_seed(0)
    network = LCTNetwork(
        [
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.Dropout()),
            nn.Sequential(nn.Flatten(), nn.BatchNorm1d(54), nn.Linear(54, 3)),
        ],
        [
            nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 3)),
            nn.Sequential(nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        ],
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return network


def small_network(first: nn.Module | None = None, critic: nn.Module | None = None) -> LCTNetwork:
    torch.manual_seed(1)
    groups = [first or nn.Sequential(nn.Flatten(), nn.Linear(4, 5)), nn.Linear(5, 2)]
    return LCTNetwork(groups, [critic or nn.Linear(5, 2)]).eval()


def profile_of(network: LCTNetwork, metric: str = "accuracy") -> Profile:
    n, quality = network.num_groups, Quality(value=0.5, low=0.4, high=0.6, loss=1.0, samples=100)
    latency = Latency(seconds=0.5, engine="torch", machine="elsewhere")
    return Profile(
        model="tiny",
        data="made up",
        metric=metric,
        groups=tuple(Cost(flops=10 * i, params=i) for i in range(1, n + 1)),
        critics=tuple(Cost(flops=i, params=i) for i in range(1, n)),
        exits=tuple(Exit(index=i, validation=quality, test=quality, latency=latency) for i in range(1, n + 1)),
        p_worse=((1.0,) * n,) * n,
    )


@pytest.fixture(scope="module")
def network() -> LCTNetwork:
    return image_network()


@pytest.fixture(scope="module")
def bundle(network: LCTNetwork, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    network.train()
    out = tmp_path_factory.mktemp("images") / "bundle"
    return export(network, IMAGES, profile_of(network), out, model_name="tiny")


def outputs(network: LCTNetwork, x: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [Z.numpy() for Z in network.eval()(torch.from_numpy(x))]


@pytest.mark.parametrize("batch", [1, 2, 5, 33])
def test_every_exit_says_what_torch_says(network: LCTNetwork, bundle: Bundle, batch: int):
    x = np.random.default_rng(batch).standard_normal((batch, 1, 8, 8), dtype=np.float32)
    expected, session = outputs(network, x), AnytimeSession(bundle)
    whole = parity.exits_engine(bundle.path, (1, 2, 3))(x)
    for i, answer in enumerate(session.stream(x), start=1):
        assert np.abs(answer.logits - expected[i - 1]).max() < 1e-5
        assert np.abs(whole[i] - expected[i - 1]).max() < 1e-5


def test_what_is_in_the_bundle(bundle: Bundle):
    manifest = bundle.manifest
    assert {path.name for path in bundle.path.iterdir()} == {
        *(f"group_{i}.onnx" for i in (1, 2, 3)), *(f"exit_{i}.onnx" for i in (1, 2, 3)),
        "critic_1.onnx", "critic_2.onnx", "manifest.json", "parity.npz", "profile.json",
    }  # fmt: skip
    assert (manifest.num_groups, manifest.served, manifest.outputs) == (3, (1, 2, 3), 3)
    assert manifest.input_shape == ("batch", 1, 8, 8) and manifest.input_dtype == "float32"
    assert manifest.preprocessing.model_dump(exclude_defaults=True) == {
        "kind": "image", "channels": 1, "height": 8, "width": 8, "mean": (0.5,), "std": (0.25,), "ground": "white",
    }  # fmt: skip
    assert 0 < manifest.largest_difference < 1e-5
    assert all(e.latency is not None and e.latency.engine == "onnxruntime" for e in bundle.profile.exits)


def test_graphs_have_the_names_and_shapes_that_the_runtime_asks_for(bundle: Bundle):
    def ends(name: str) -> tuple[str, list, str, list]:
        graph = onnx.load(bundle.path / name).graph
        (x,), (y,) = graph.input, graph.output
        shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (x, y)]
        return x.name, shapes[0], y.name, shapes[1]

    image, first, second, logits = (["batch", *rest] for rest in ([1, 8, 8], [4, 8, 8], [6, 3, 3], [3]))
    assert ends("group_1.onnx") == ("input", image, "hidden", first)
    assert ends("group_2.onnx") == ("input", first, "hidden", second)
    assert ends("group_3.onnx") == ("input", second, "logits", logits)
    assert ends("critic_1.onnx") == ("input", first, "logits", logits)
    assert ends("critic_2.onnx") == ("input", second, "logits", logits)
    for i in (1, 2, 3):
        assert ends(f"exit_{i}.onnx") == ("input", image, "logits", logits)


def test_graphs_hold_no_norm_and_nothing_of_the_machine(bundle: Bundle):
    for path in bundle.path.glob("*.onnx"):
        model = onnx.load(path)
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == bundle.manifest.opset
        content = path.read_bytes()
        assert not model.metadata_props and b"stack_trace" not in content and b".py" not in content


def test_text_of_any_length_and_no_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    model = models.build("lstm", (12,), 7, layers=2, units=6, embedding=5, dropout=0.2)
    critics = [nn.Linear(5, 7), nn.Linear(6, 7)]
    network = LCTNetwork([model.embedding, model.lstm[0], nn.Sequential(model.lstm[1], model.output)], critics)
    bundle = export(network, TEXT, profile_of(network, "bpc"), tmp_path / "bundle", model_name="lstm")
    assert bundle.manifest.preprocessing.symbols == "abcdefg"
    assert bundle.manifest.input_shape == ("batch", "time")
    session, whole = AnytimeSession(bundle), parity.exits_engine(bundle.path, (1, 2, 3))
    for shape in ((1, 12), (2, 1), (5, 31)):
        x = np.random.default_rng(0).integers(0, 7, shape)
        for i, expected in enumerate(outputs(network, x), start=1):
            assert np.abs(session.run_to(i, x).logits - expected).max() < 1e-5
            assert np.abs(whole(x)[i] - expected).max() < 1e-5
    assert capfd.readouterr() == ("", "")


def test_only_what_was_asked_for(tmp_path: Path):
    network = small_network()
    whole = export(network, VECTORS, profile_of(network), tmp_path / "w", model_name="m", exits=[1, 1], only="exits")
    assert {path.name for path in whole.path.iterdir()} == {
        "exit_1.onnx", "manifest.json", "parity.npz", "profile.json",
    }  # fmt: skip
    assert whole.manifest.served == (1,) and whole.manifest.num_groups == 2
    assert [e.latency is None for e in whole.profile.exits] == [False, True]
    x = np.ones((3, 1, 2, 2), np.float32)
    assert np.allclose(AnytimeSession(whole).run_to(1, x).logits, outputs(network, x)[0], atol=1e-6)

    parts = export(network, VECTORS, profile_of(network), tmp_path / "p", model_name="m", exits=[2], only="groups")
    assert {path.name for path in parts.path.iterdir()} == {
        "group_1.onnx", "group_2.onnx", "manifest.json", "parity.npz", "profile.json",
    }  # fmt: skip
    assert np.allclose(AnytimeSession(parts).run_to(2, x).logits, outputs(network, x)[1], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": [3]}, "exits from 1 to 2 to export, got 3"),
        ({"exits": []}, "got none"),
        ({"only": "critics"}, "only 'critics'"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, options: dict, message: str):
    network = small_network()
    with pytest.raises(ExportError, match=message):
        export(network, VECTORS, profile_of(network), tmp_path / "b", model_name="m", **options)
    with pytest.raises(ExportError, match="profile of the same network"):
        export(network, VECTORS, profile_of(image_network()), tmp_path / "b", model_name="m")
    assert not list(tmp_path.iterdir())


class OtherwiseWhenExported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.01 if torch.compiler.is_exporting() else x


def test_a_graph_that_differs_from_torch_is_not_written(tmp_path: Path):
    network = small_network(critic=nn.Sequential(nn.Linear(5, 2), OtherwiseWhenExported()))
    with pytest.raises(ExportError, match=r"groups at exit 1 to agree with torch within 1\.0e-04, but logits"):
        export(network, VECTORS, profile_of(network), tmp_path / "bundle", model_name="m")
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_the_part_that_cannot_be_exported_is_named(tmp_path: Path):
    network = small_network(critic=nn.Sequential(nn.Linear(5, 2), Branching()))
    with pytest.raises(ExportError, match=r"^Critic 1 cannot be exported to ONNX: .+"):
        export(network, VECTORS, profile_of(network), tmp_path / "bundle", model_name="m")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_kept_until_the_new_one_is_complete(tmp_path: Path):
    network, out = small_network(), tmp_path / "bundle"
    options = {"model_name": "m", "exits": [2], "only": "groups"}

    def interrupt(what: str) -> None:
        if "timing" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(network, VECTORS, profile_of(network), out, progress=interrupt, **options)
    assert not list(tmp_path.iterdir())

    first = export(network, VECTORS, profile_of(network), out, **options)
    with pytest.raises(ExportError, match="holds a bundle already; replace it with --force"):
        export(network, VECTORS, profile_of(network), out, **options)
    with pytest.raises(KeyboardInterrupt):
        export(network, VECTORS, profile_of(network), out, progress=interrupt, force=True, **options)
    assert Bundle.open(out).manifest == first.manifest
    again = export(network, VECTORS, profile_of(network), out, force=True, **{**options, "model_name": "n"})
    assert again.manifest.model == "n" and [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert again.manifest.groups == first.manifest.groups  # to the byte


def test_force_replaces_a_link_and_leaves_where_it_points(tmp_path: Path):
    network = small_network()
    first = export(network, VECTORS, profile_of(network), tmp_path / "first", model_name="m", only="exits")
    (tmp_path / "link").symlink_to("first")
    export(network, VECTORS, profile_of(network), tmp_path / "link", model_name="n", only="exits", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "link"]
    assert Bundle.open(tmp_path / "link").manifest.model == "n" and not (tmp_path / "link").is_symlink()
    assert Bundle.open(first.path).manifest.model == "m"


def test_the_folder_one_is_in_is_no_place_for_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    network = small_network()
    with pytest.raises(ExportError, match="something else than a bundle"):
        export(network, VECTORS, profile_of(network), Path(), model_name="m", force=True)


def test_force_spares_what_is_no_bundle(tmp_path: Path):
    (tmp_path / "letters.txt").write_text("dear")
    network = small_network()
    with pytest.raises(ExportError, match="something else than a bundle; choose another --out"):
        export(network, VECTORS, profile_of(network), tmp_path, model_name="m", force=True)
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_the_network_is_left_as_it_was(tmp_path: Path, capfd, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    network = image_network()
    network.groups[1].eval()
    modes = [m.training for m in network.modules()]
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    messages: list[str] = []
    export(
        network,
        IMAGES,
        profile_of(network),
        tmp_path / "b",
        model_name="m",
        only="exits",
        progress=messages.append,
    )
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "") and not caplog.records and len(messages) == 3
