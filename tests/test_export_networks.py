"""The networks of the toolkit, and layers that ONNX knows in another form, answer exported as in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from bundles import make_profile, write_text_bundle
from exporting import export
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct.errors import ExportError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask, Budget
from anytime_lct.exits.bundle import Bundle
from anytime_lct.exits.profile import Profile
from anytime_lct.export import parity
from anytime_lct.models import networks as models
from anytime_lct.modes import carrying, probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe
from anytime_lct.runtime import AnytimeSession, generate
from anytime_lct.task import Facts

IMAGES = Facts("made", "classification", (1, 8, 8), 10, tuple("0123456789"), (0.5,), (0.25,))
TEXT = Facts("made", "language-model", (12,), 7, tuple("abcdefg"))


def sample(facts: Facts, batch: int, length: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    if facts.task == "language-model":
        return torch.randint(facts.outputs, (batch, length), generator=generator)
    return torch.randn(batch, *facts.input_shape, generator=generator)


def cut(name: str, facts: Facts, num_groups: int, **options: Any) -> LCTNetwork:
    model = models.build(name, facts.input_shape, facts.outputs, **options)
    return with_history(LCTNetwork.cut(model, sample(facts, 2), CutRecipe(groups=num_groups), task=facts.task))


def with_history(network: LCTNetwork) -> LCTNetwork:
    """Give norms the statistics and weights that training would leave, unlike those they start with."""
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.running_mean, norm.bias):
                nn.init.normal_(values, std=0.3, generator=generator)  # type: ignore[arg-type]
            for values in (norm.running_var, norm.weight):
                nn.init.uniform_(values, 0.5, 1.5, generator=generator)  # type: ignore[arg-type]
    return network


def profile_of(network: LCTNetwork) -> Profile:
    n = network.num_groups
    return make_profile([0.5 + 0.1 * i for i in range(n)], groups=[10] * n, critics=[1] * (n - 1))


def agree(bundle: Bundle, network: LCTNetwork, x: Tensor) -> None:
    """Hold every exit, whole and as the chain of its groups, against torch's sub-model."""
    network.eval()
    for i in bundle.manifest.served:
        with torch.no_grad():
            expected = network.sub_model(i)(x).numpy()
        hidden = x.numpy()
        for k in range(1, i + 1):
            hidden = run(bundle.group(k), hidden)
        chained = run(bundle.critic(i), hidden) if i < network.num_groups else hidden
        for logits in (run(bundle.exit(i), x.numpy()), chained):
            assert logits.shape == expected.shape and np.abs(logits - expected).max() <= 1e-4


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def norms(bundle: Bundle) -> list[str]:
    paths = bundle.path.glob("*.onnx")
    return [p.name for p in paths if any(n.op_type == "BatchNormalization" for n in onnx.load(p).graph.node)]


def test_a_resnet(tmp_path: Path):
    network = cut("resnet", IMAGES, 4, depth=8, width=4)
    bundle = export(network, IMAGES, profile_of(network), tmp_path / "bundle", model_name="resnet")
    for batch in (1, 3, 64):
        agree(bundle, network, sample(IMAGES, batch))
    assert not norms(bundle) and 0 < bundle.manifest.largest_difference <= 1e-4


def test_a_group_that_starts_with_an_identity_block_reads_its_input_once(tmp_path: Path):
    """Else the sum around the first convolution is computed apart, slower and rounded otherwise than in the exit.

    The two convolutions of a block with a projection share one conversion without that.
    """
    places = ["layer1.0", "layer1.1", "layer2.0"]  # identity, projection, identity
    model = models.build("resnet", IMAGES.input_shape, IMAGES.outputs, depth=14, width=8)
    network = with_history(LCTNetwork.cut(model, sample(IMAGES, 2), CutRecipe(places=tuple(places))))
    bundle = export(network, IMAGES, profile_of(network), tmp_path / "bundle", model_name="resnet")
    graphs = [onnx.load(bundle.group(i)).graph for i in (2, 3, 4)]
    readers = [[node.op_type for node in graph.node if "input" in node.input] for graph in graphs]
    assert readers == [["MaxPool"], ["Conv", "Conv"], ["MaxPool"]]
    agree(bundle, network, sample(IMAGES, 3))


def test_a_perceptron(tmp_path: Path):
    network = cut("mlp", IMAGES, 3, hidden=[6, 5])
    bundle = export(network, IMAGES, profile_of(network), tmp_path / "bundle", model_name="mlp")
    for batch in (1, 3, 64):
        agree(bundle, network, sample(IMAGES, batch))


@pytest.mark.parametrize(("layers", "num_groups"), [(4, 3), (3, 2), (2, 1)])
def test_a_character_model_cut_between_some_of_its_layers(layers: int, num_groups: int, tmp_path: Path):
    network = cut("lstm", TEXT, num_groups, layers=layers, units=6, embedding=5)
    bundle = export(network, TEXT, profile_of(network), tmp_path / "bundle", model_name="lstm", only="groups")
    assert 0 < bundle.manifest.largest_difference <= 1e-4


def test_a_character_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    network = cut("lstm", TEXT, 3, layers=3, units=6, embedding=5, dropout=0.2)
    bundle = export(network, TEXT, profile_of(network), tmp_path / "bundle", model_name="lstm")
    for batch, length in [(1, 12), (3, 5), (64, 12), (2, 1), (1, 1), (2, 31)]:
        agree(bundle, network, sample(TEXT, batch, length))
    for exit in (1, 2, 3):
        with probing(network), carrying(network):  # torch reads every character once
            k, expected = 0, ""
            for _ in range(15):
                k = int(network(torch.tensor([[k]]))[exit - 1][0, -1].argmax())
                expected += TEXT.classes[k]
        ask = Ask(Budget(exit=exit), mode="fixed")
        text = generate(AnytimeSession(bundle), "a", 15, ask, temperature=0)
        assert "".join(character.symbol for character in text) == expected
    assert bundle.manifest.reads_on
    anew = generate(AnytimeSession(bundle, provider="openvino"), "a", 15, ask, temperature=0)  # the whole text
    assert "".join(character.symbol for character in anew) == expected
    confidences = AnytimeSession(bundle).run_to(1, sample(TEXT, 1, 30).numpy()).probabilities.max(axis=-1)
    half = Ask(min_confidence=float(np.median(confidences)))
    for ask in (DEFAULT_ASK, half, replace(half, budget=Budget(exit=2))):
        once, anew = (
            list(generate(AnytimeSession(bundle), "ab", 40, ask, context=context, seed=1)) for context in (None, 99)
        )  # groups that were not needed catch up
        for a, b in zip(once, anew, strict=True):
            assert (a.symbol, a.exit, a.stopped) == (b.symbol, b.exit, b.stopped)
            assert abs(a.probability - b.probability) < 1e-5
        assert len({a.exit for a in once}) > 1 or ask == DEFAULT_ASK
    assert capfd.readouterr() == ("", "")  # onnxruntime would tell of a shape unlike the recorded one


def test_a_network_that_needs_the_whole_text_does_not_read_on(tmp_path: Path):
    bundle = write_text_bundle(tmp_path)
    facts = Facts("made", "language-model", (12,), bundle.manifest.outputs, bundle.manifest.classes)
    assert parity.reads_on(tmp_path, 3, (1, 2), facts)
    model = onnx.load(bundle.group(2))
    model.graph.node[0].input[0] = "sums"
    model.graph.node.insert(0, onnx.helper.make_node("CumSum", ["input", "axis"], ["sums"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "axis"))
    onnx.save(model, bundle.group(2))
    assert not parity.reads_on(tmp_path, 3, (1, 2), facts)


def test_pooling_to_a_side_that_does_not_divide(tmp_path: Path):
    """The paper's ImageNet critic pools maps of 14x14 to 8x8."""
    facts = Facts("made", "classification", (3, 14, 14), 5, tuple("abcde"))
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(288, 5))
    network = LCTNetwork.cut(
        nn.Sequential(*layers), sample(facts, 2), CutRecipe(places=("1",)), CriticRecipe(kind="paper-imagenet")
    )
    bundle = export(network, facts, profile_of(network), tmp_path / "bundle", model_name="made")
    agree(bundle, network, sample(facts, 3))


class Apply(nn.Module):
    """Runs a function on the output of a layer."""

    def __init__(self, layer: nn.Module, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def stretched(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(11, 5), mode="bicubic")


@pytest.mark.parametrize(
    "layer",
    [
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.AdaptiveMaxPool2d(5),
        nn.AdaptiveMaxPool2d((7, None)),
        nn.AdaptiveAvgPool2d(5),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
        Apply(nn.Identity(), stretched),
        Apply(nn.Identity(), lambda x: torch.cat([x, x.std(dim=(2, 3), keepdim=True).expand_as(x)], dim=1)),
        Apply(nn.Identity(), lambda x: torch.einsum("bchw,bdhw->bcdh", x, x)),
    ],
)
def test_layers_that_train_are_exported_too(layer: nn.Module, tmp_path: Path):
    facts = Facts("made", "classification", (3, 8, 8), 5, tuple("abcde"))
    with torch.no_grad():
        shape = layer(torch.zeros(2, 4, 8, 8)).shape
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), layer, nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(shape[1:].numel(), 5))
    network = LCTNetwork.cut(model, sample(facts, 2), CutRecipe(places=("1",)), CriticRecipe(kind="slim"))
    if isinstance(layer, nn.InstanceNorm2d):
        nn.init.normal_(layer.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    bundle = export(network, facts, profile_of(network), tmp_path / "bundle", model_name="made")
    agree(bundle, network, sample(facts, 3))


def test_a_norm_with_no_convolution_before_it(tmp_path: Path):
    """As in pre-activation networks: nothing to fold it into, so that it is written out."""
    layers = (
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 3, 3),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    network = with_history(LCTNetwork.cut(nn.Sequential(*layers), sample(IMAGES, 2), CutRecipe(places=("1",))))
    bundle = export(network, IMAGES, profile_of(network), tmp_path / "bundle", model_name="made")
    assert not norms(bundle)
    agree(bundle, network, sample(IMAGES, 3))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    network = cut("mlp", IMAGES, 2, hidden=[4])
    monkeypatch.setattr(parity, "largest_difference", full)
    with pytest.raises(ExportError, match="No space left"):
        export(network, IMAGES, profile_of(network), tmp_path / "bundle", model_name="mlp")
    assert not list(tmp_path.iterdir())
