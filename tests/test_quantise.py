"""int8 bundles: the chain says what whole exits say, scales as by hand, and what is stored was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporting import export
from onnx import numpy_helper
from test_export import IMAGES, TEXT, image_network, profile_of, small_network
from torch import nn

from anytime_lct.cli.main import run as program
from anytime_lct.data import datasets
from anytime_lct.errors import BundleError, ExportError
from anytime_lct.exits.bundle import Bundle, File, describe_file
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.thresholds import MeanCost, Thresholds, ThresholdTable
from anytime_lct.export import parity
from anytime_lct.export.graphs import export_sheet
from anytime_lct.export.quantise import Int8, quantise, share_scale
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.runtime.session import AnytimeSession


def noise(seed: int, batch: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 1, 8, 8), dtype=np.float32)


def rule(flops: float, *visited: int) -> Thresholds:
    quality = profile_of(image_network()).exits[0].test
    return Thresholds(
        mean_flops=flops,
        measure="margin",
        at={i: 0.5 if i < visited[-1] else 0.0 for i in visited},
        shares={i: 1 / len(visited) for i in visited},
        accuracy=quality,
        cost=MeanCost(flops=flops, low=flops, high=flops),
    )


RULES = ThresholdTable(rules=(rule(10.0, 1, 3), rule(20.0, 1, 2, 3)))


@pytest.fixture(scope="module")
def network() -> LCTNetwork:
    return image_network().eval()


@pytest.fixture(scope="module")
def int8_bundle(network: LCTNetwork, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list]:
    """An int8 bundle, and what its exits answered when they were measured."""
    profile, measured = profile_of(network), []

    def measure(answers, served):
        measured.append([served, *(Z.numpy() for Z in answers(torch.from_numpy(noise(9))))])
        exits = tuple(e.model_copy(update={"temperature": 2.0 + e.index}) for e in profile.exits)
        return profile.model_copy(update={"exits": exits}), RULES

    out = tmp_path_factory.mktemp("int8") / "bundle"
    int8 = Int8([noise(seed) for seed in range(4)], measure)
    return export(network, IMAGES, profile, out, model_name="tiny", int8=int8), measured


def test_the_chain_of_int8_groups_says_what_whole_exits_say_to_the_bit(int8_bundle):
    bundle, _ = int8_bundle
    session = AnytimeSession(bundle)
    for batch in (1, 5, 33):
        x = noise(batch, batch)
        whole = parity.exits_engine(bundle.path, (1, 2, 3))(x)
        for i, answer in enumerate(session.stream(x), start=1):
            assert np.array_equal(answer.logits, whole[i])
            assert np.array_equal(session.run_to(i, x).logits, whole[i])
    assert bundle.manifest.largest_difference == 0.0
    assert bundle.manifest.precision == "int8"


def test_int8_says_nearly_what_torch_says(network, int8_bundle):
    """Rounding to 8 and 7 bits: a few hundredths of what the logits span, and not nothing."""
    session = AnytimeSession(int8_bundle[0])
    with torch.no_grad():
        expected = [Z.numpy() for Z in network(torch.from_numpy(noise(0)))]
    for answer, of_torch in zip(session.stream(noise(0)), expected, strict=True):
        difference = np.abs(answer.logits - of_torch).max() / np.ptp(of_torch)
        assert 1e-5 < difference < 0.05


def test_openvino_answers_as_onnxruntime_but_for_rounding(int8_bundle):
    """Compared when it is loaded, and here with the bundle's own answers; float32 would be closer by far."""
    stored = AnytimeSession(int8_bundle[0]).check_parity()
    assert max(stored.values()) == 0.0
    differences = AnytimeSession(int8_bundle[0], provider="openvino").check_parity()
    assert differences.keys() == stored.keys() and max(differences.values()) < 0.1


def test_what_is_measured_is_what_is_served_and_stored(int8_bundle):
    bundle, measured = int8_bundle
    ((served, *logits),) = measured
    session = AnytimeSession(bundle)
    assert served == (1, 2, 3)
    for i, Z in enumerate(logits, start=1):
        assert np.array_equal(session.run_to(i, noise(9)).logits, Z)
    assert [e.temperature for e in bundle.profile.exits] == [3.0, 4.0, 5.0]
    assert all(e.latency is not None and e.latency.engine == "onnxruntime" for e in bundle.profile.exits)
    assert bundle.thresholds == RULES
    assert bundle.manifest.thresholds == describe_file(bundle.path / "thresholds.json")


def test_scales_by_hand():
    """Inputs of 0 to 4, weights of 1 and -0.5: input scale 4 / 255, and a scale for each channel, of 7 bits."""
    network = LCTNetwork(
        [nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(8, 2))],
        [nn.Sequential(nn.Flatten(), nn.Linear(8, 2))],
    ).eval()
    with torch.no_grad():
        network.groups[0][0].weight.copy_(torch.tensor([1.0, -0.5]).view(2, 1, 1, 1))
    x = np.linspace(0, 4, 8, dtype=np.float32).reshape(2, 1, 2, 2)
    critics = {1: network.critics[0]}
    sheet = export_sheet(list(network.groups), critics, torch.zeros(2, 1, 2, 2), ("batch",), complete=True)
    graph = quantise(sheet, list(network.groups), [x]).group(1).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    entering = next(node for node in graph.node if "input" in node.input)
    conv = next(node for node in graph.node if node.op_type == "Conv")
    weight = next(node for node in graph.node if conv.input[1] in node.output)
    assert values[entering.input[1]] == pytest.approx(4 / 255) and values[entering.input[2]] == 0
    stored, scales, _ = (values[name] for name in weight.input)
    assert stored.dtype == np.int8 and np.abs(stored).max() <= 64
    assert (stored.ravel() * scales).tolist() == pytest.approx([1.0, -0.5])
    leaving = next(node for node in graph.node if "hidden" in node.output)
    assert leaving.op_type == "DequantizeLinear" and values[leaving.input[1]] == pytest.approx(4 / 255)


def test_both_pairs_around_a_hidden_tensor_get_one_scale():
    """The two are computed from the same values by torch and by onnxruntime, and differed in the last bit."""
    scales = {"left": np.float32(0.1), "entered": np.nextafter(np.float32(0.1), np.float32(1))}
    scales |= {"zero": np.uint8(0), "one": np.uint8(1)}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("DequantizeLinear", ["q", "left", "zero"], ["group_1"]),
            onnx.helper.make_node("QuantizeLinear", ["hidden_1", "entered", "one"], ["p"]),
        ],
        "sheet",
        [],
        [],
        [numpy_helper.from_array(value, name) for name, value in scales.items()],
    )
    share_scale(graph, "group_1", "hidden_1")
    values = {t.name: numpy_helper.to_array(t).item() for t in graph.initializer}
    assert values == {"left": scales["entered"], "entered": scales["entered"], "zero": 1, "one": 1}


def test_what_stays_float32(int8_bundle):
    """The last product of every exit, and the norms in front of group 2 and critic 2, which follow no convolution."""
    for name, products in (("critic_1", 1), ("critic_2", 1), ("group_3", 1)):
        graph = onnx.load(int8_bundle[0].path / f"{name}.onnx").graph
        makers = {value: node for node in graph.node for value in node.output}
        last = makers["logits"]
        assert last.op_type in ("Gemm", "MatMul") and last.input[1] in {t.name for t in graph.initializer}
        assert sum(node.op_type in ("Gemm", "MatMul") for node in graph.node) == products
    graph = onnx.load(int8_bundle[0].path / "group_2.onnx").graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Add", "Mul"):
            (factor,) = weights.keys() & set(node.input)
            assert weights[factor].dtype == np.float32
        if node.op_type == "Conv":
            assert node.input[1] not in weights  # it comes out of a DequantizeLinear


class Gained(nn.Conv2d):
    """A convolution with a gain for every channel, named as the quantiser names a scale."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.weight_scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.weight_scale


def dead_channels(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    nn.init.constant_(norm.bias, 0.5)
    norm.weight.data[::2] = torch.tensor([0.0, 1e-12])
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), norm)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)],
        [nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()],
        [nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU()],
        [nn.Conv2d(1, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 3), nn.Hardswish()],
        [nn.Conv2d(1, 4, 3), nn.Mish(), nn.Conv2d(4, 4, 3), nn.Mish()],
        [nn.Conv2d(1, 4, 3), nn.ReLU(), Gained(4), nn.ReLU()],
        [nn.Conv2d(1, 4, 3), nn.ReLU(), dead_channels(4), nn.ReLU()],
    ],
    ids=["norm behind", "norm first", "vectors", "hardswish", "mish", "named scale", "dead channels"],
)
def test_every_order_of_layers_is_quantised_also_into_a_single_file(layers: list[nn.Module], tmp_path: Path):
    torch.manual_seed(0)
    vectors = isinstance(layers[0], nn.Flatten)
    end = [nn.Linear(4, 3)] if vectors else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    places = CutRecipe(places=("4" if vectors else "2",))
    network = LCTNetwork.cut(nn.Sequential(*layers, *end), torch.randn(2, 1, 8, 8), places, CriticRecipe(kind="slim"))
    int8 = Int8([noise(0)], lambda answers, served: (profile_of(network), None))
    bundle = export(network.eval(), IMAGES, profile_of(network), tmp_path / "b", model_name="m", int8=int8, single=True)
    assert bundle.manifest.largest_difference < 1e-5
    with torch.no_grad():
        expected = network.sub_model(2)(torch.from_numpy(noise(0))).numpy()
    difference = np.abs(AnytimeSession(bundle).run_to(2, noise(0)).logits - expected).max()
    assert difference < 0.1 * np.ptp(expected)


def test_the_comparison_uses_the_threads_of_torch(int8_bundle):
    """Else onnxruntime pins a thread to every core of the machine, also those that a container may not use."""
    options = parity._open(int8_bundle[0].exit(1)).get_session_options()
    assert options.intra_op_num_threads == torch.get_num_threads()


def test_what_onnxruntime_raises_is_one_sentence(network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def damaged(path: Path, exits: object) -> object:
        path.write_bytes(b"no graph")
        return parity._open(path)

    monkeypatch.setattr(parity, "single_file_engine", damaged)
    with pytest.raises(ExportError, match=r"Expected ONNX graphs that load and run, got: .*; nothing was written"):
        export(network, IMAGES, profile_of(network), tmp_path / "b", model_name="m", single=True)
    assert not list(tmp_path.iterdir())


def test_some_exits_only(network, tmp_path: Path):
    profile = profile_of(network)
    for only, exits in (("groups", [1, 2]), ("exits", [2])):
        served = []
        int8 = Int8([noise(0)], lambda answers, asked, served=served: (served.extend(asked), (profile, RULES))[1])
        out = tmp_path / only
        bundle = export(network, IMAGES, profile, out, model_name="m", exits=exits, only=only, int8=int8)
        assert served == exits and bundle.manifest.served == tuple(exits)
        assert bundle.thresholds is None and not (out / "thresholds.json").exists()
        assert AnytimeSession(bundle).run_to(2, noise(0)).logits.shape == (16, 3)


def test_rules_are_carried_where_their_exits_are(network, tmp_path: Path):
    bundle = export(
        network, IMAGES, profile_of(network), tmp_path / "b", model_name="m", exits=[1, 3], only="groups",
        thresholds=RULES,
    )  # fmt: skip
    assert bundle.thresholds == ThresholdTable(rules=RULES.rules[:1])
    assert bundle.manifest.precision == "float32"
    path = tmp_path / "b" / "thresholds.json"
    path.write_text(path.read_text().replace("margin", "Margin"))
    with pytest.raises(BundleError, match=r"thresholds\.json' is truncated or altered"):
        Bundle.open(tmp_path / "b")
    RULES.save(path)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["thresholds"] = File.model_validate(describe_file(path)).model_dump()
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="visit exits it lacks"):
        Bundle.open(tmp_path / "b")


def test_what_cannot_be_quantised_is_refused_and_not_written(tmp_path: Path):
    network = small_network()
    int8 = Int8([np.zeros((2, 3, 3), np.float32)], lambda answers, served: (profile_of(network), None))
    with pytest.raises(ExportError, match="got a language model"):
        export(network, TEXT, profile_of(network), tmp_path / "b", model_name="m", int8=int8)
    with pytest.raises(ExportError, match="cannot be quantised to int8: "):
        export(image_network(), IMAGES, profile_of(image_network()), tmp_path / "b", model_name="m", int8=int8)
    assert not list(tmp_path.iterdir())


def test_the_command_measures_every_exit_again_on_the_int8_graphs(tmp_path: Path, capsys):
    run, out = tmp_path / "run", tmp_path / "bundle"
    options = "--data digits --model resnet --set model.depth=8 --set model.width=4 --set cut.by=balanced --groups 3"
    called("train", *options.split(), "--epochs", "1", "--run-dir", run, "--json")
    called("analyze", run, "--json")
    before = Profile.load(run)
    middle = (before.cost(1).flops + before.cost(3).flops) / 2
    called("thresholds", run, "--mean-flops", f"{middle:.0f}", "--json")
    capsys.readouterr()
    called("export", run, "--out", out, "--int8", "--calibration-samples", "200")
    output = capsys.readouterr().out
    bundle = Bundle.open(out)
    session, right, rules = AnytimeSession(bundle), np.zeros(3), bundle.thresholds
    opened = run_folder.open_run(run)
    for x, y in datasets.from_recipe(opened.recipe).batches("test"):
        right += [(answer.classes == y.numpy()).sum() for answer in session.stream(x.numpy())]
    assert [e.test.value for e in bundle.profile.exits] == pytest.approx((right / 360).tolist())
    assert [e.temperature for e in bundle.profile.exits] != [e.temperature for e in before.exits]
    assert (bundle.profile.groups, bundle.profile.critics) == (before.groups, before.critics)
    assert rules is not None and [rule.mean_flops for rule in rules.rules] == [round(middle)]
    for i in (1, 2, 3):
        share = f"{100 * bundle.profile.exits[i - 1].test.value:.2f}%"
        assert f"Exit {i}: test accuracy {share} in int8" in output

    table = ThresholdTable.load(run / "thresholds.json")
    table.model_copy(update={"network": "another"}).save(run / "thresholds.json")
    called("export", run, "--out", tmp_path / "other", "--only", "groups", "--exits", "1")
    assert "other weights" in capsys.readouterr().err
    assert Bundle.open(tmp_path / "other").thresholds is None


def called(*arguments: object) -> None:
    try:
        program([str(argument) for argument in arguments])
    except SystemExit as ended:
        assert not ended.code
