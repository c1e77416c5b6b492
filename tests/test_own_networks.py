"""Networks and weights that users bring: torchvision, timm, files; frozen main networks; exits at shares."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct.cli.main import run as program
from anytime_lct.data import datasets
from anytime_lct.errors import CheckpointError, DataError, ModelError, PartitionError, RecipeError
from anytime_lct.models import networks, weights
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading
from anytime_lct.recipes import recipe as recipes
from anytime_lct.recipes.recipe import CutRecipe
from anytime_lct.run_folder import checkpoint, start
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_network
from anytime_lct.run_folder.paths import store
from anytime_lct.training.events import Note
from anytime_lct.training.methods.posthoc import PostHocRecipe
from anytime_lct.training.run import train

FACTORY = """
from torch import nn


class Small(nn.Sequential):
    def __init__(self, outputs, width=8):
        layers = [nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))


def of_shape(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], 9), nn.ReLU(), nn.Linear(9, outputs))


def deep(outputs):
    hidden = [layer for _ in range(2) for layer in (nn.Linear(100, 100), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), *hidden, nn.Linear(100, outputs))


def thousand():
    return Small(1000)


def wrong(outputs):
    return nn.Sequential(nn.Linear(7, outputs))


def nothing():
    return None
"""
TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, outputs)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(self.a(self.stem(x)).relu()).relu())
"""
DIGITS = {"name": "digits", "batch_size": 100, "augment": "none"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(FACTORY)
    return tmp_path / "own.py"


def recipe_of(name: str, **tables) -> recipes.Recipe:
    return reading.complete(
        {
            "data": DIGITS,
            "model": {"name": name},
            "cut": {"groups": 2},
            "critics": {"name": "adam", "lr": 1e-2},
            "critics_schedule": {"name": "constant"},
            **tables,
            "train": {"epochs": 1, **tables.get("train", {})},
        }
    )


def run(recipe: recipes.Recipe, folder: Path) -> list:
    return list(train(recipe, datasets.from_recipe(recipe), folder))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:resnet18", (3, 40, 40)),
        ("torchvision:vit_b_16", (3, 32, 32)),
        ("timm:resnet10t", (1, 32, 32)),
        ("timm:vit_tiny_patch16_224", (3, 32, 48)),
    ],
)
def test_a_librarys_network_is_made_for_the_data_under_its_own_names(name, shape):
    model = networks.build(name, shape, 7)
    source, _, rest = name.partition(":")
    if source == "torchvision":
        own = torchvision.models.get_model(rest, num_classes=7)
    else:
        own = __import__("timm").create_model(rest, num_classes=7)
    assert model.state_dict().keys() == own.state_dict().keys()
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 7)


def test_another_number_of_channels_changes_the_first_convolution_alone():
    model, own = networks.build("torchvision:squeezenet1_1", (1, 64, 64), 1000), torchvision.models.squeezenet1_1()
    odd = [name for name, value in own.state_dict().items() if model.state_dict()[name].shape != value.shape]
    assert odd == ["features.0.weight"]


def test_a_factory_of_a_file_gets_the_facts_and_its_options(file):
    assert networks.build(f"{file}:Small", (1, 8, 8), 7, width=5)[7].weight.shape == (7, 5)
    assert networks.build(f"{file}:of_shape", (1, 8, 8), 7)[1].weight.shape == (9, 64)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("torchvision:resnet19", {}, "did you mean resnet18"),
        ("timm:resnet19", {}, "did you mean resnet18"),
        ("torchvision:resnet18", {"wide": 3}, "cannot be built with wide = 3.*'wide'"),
        ("torchvision:vgg11", {}, r"cannot read inputs \(1, 8, 8\).*too small"),
        ("torchvision:vit_b_16", {}, "cannot be built: .*; it is made for images of 224x224"),
        ("elsewhere:resnet18", {}, "torchvision:NAME, timm:NAME or path"),
        ("models.mlp:mlp", {}, "got 'models.mlp:mlp'; did you mean models/mlp.py:mlp"),
        ("{file}", {}, "Expected .*own.py:FACTORY, got"),
        ("none.py:make", {}, "which is not there"),
        ("{file}:make", {}, "function or class 'make'"),
        ("{file}:nothing", {}, "got a NoneType"),
        ("{file}:thousand", {}, r"logits of 7 classes.*\(2, 1000\).*take `outputs`"),
        ("{file}:wrong", {}, "cannot read inputs"),
    ],
)
def test_networks_that_do_not_suit_say_so(name, options, says, file, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(ModelError, match=says):
        networks.build(name.format(file=file), (1, 8, 8), 7, **options)


def test_a_file_that_fails_is_named_with_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\nraise ValueError('no')\n")
    with pytest.raises(ModelError, match=r"no \(at .*broken\.py:2: raise ValueError"):
        networks.build(f"{tmp_path}/broken.py:make", (1, 8, 8), 7)


NEIGHBOURS = """
from torch import nn

def lazily(outputs):
    from beside_{key} import small
    return small(outputs)

def relatively(outputs):
    from .beside_{key} import small
    return small(outputs)

def missing(outputs):
    import a_package_that_is_not_installed

def other_name(classes):
    return lazily(classes)

def usual_name(num_classes=1000):
    return lazily(num_classes)
"""


def test_a_factory_imports_the_files_beside_it_when_it_is_called(tmp_path):
    key = tmp_path.name.replace("-", "_")
    (tmp_path / f"beside_{key}.py").write_text(FACTORY + "\n\nsmall = Small\n")
    (tmp_path / "own.py").write_text(NEIGHBOURS.format(key=key))
    (tmp_path / "top.py").write_text(f"from .beside_{key} import small\n")
    (tmp_path / "none.py").write_text("import a_package_that_is_not_installed\n")
    path = list(sys.path)
    for name in ("own.py:lazily", "own.py:relatively", "top.py:small"):
        assert networks.build(f"{tmp_path}/{name}", (1, 8, 8), 7)[7].weight.shape == (7, 8)
    for name in ("own.py:missing", "none.py:make"):
        with pytest.raises(ModelError, match=r"imports 'a_package_that_is_not_installed'.*install it with pip"):
            networks.build(f"{tmp_path}/{name}", (1, 8, 8), 7)
    with pytest.raises(ModelError, match=r"the number of classes.*requires classes too.* by --set model.classes=7"):
        networks.build(f"{tmp_path}/own.py:other_name", (1, 8, 8), 7)
    assert networks.build(f"{tmp_path}/own.py:other_name", (1, 8, 8), 7, classes=7)[7].weight.shape == (7, 8)
    assert networks.build(f"{tmp_path}/own.py:usual_name", (1, 8, 8), 7)[7].weight.shape == (7, 8)
    assert sys.path == path


PACKAGE = {
    "__init__.py": "",
    "nets/__init__.py": "from .net import make",
    "nets/net.py": "from ..layers import layer\nfrom {name}.nets.parts.head import head\nfrom torch import nn\n\n"
    "def make(num_classes):\n    return nn.Sequential(nn.Flatten(), layer(), nn.ReLU(), head(num_classes))",
    "nets/parts/__init__.py": "",
    "nets/parts/head.py": "from ...layers import nn\n\ndef head(outputs):\n    return nn.Linear(8, outputs)",
    "layers.py": "from torch import nn\n\ndef layer():\n    return nn.Linear(64, 8)",
}


def test_a_file_of_a_package_imports_as_the_package_does_and_is_copied_with_it(tmp_path, monkeypatch):
    name, path = f"package_{abs(hash(tmp_path))}", list(sys.path)
    for file, text in PACKAGE.items():
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_text(text.replace("{name}", name))
    for file in ("nets/net.py", "nets/__init__.py"):
        assert networks.build(f"{tmp_path}/{name}/{file}:make", (1, 8, 8), 7)[3].weight.shape == (7, 8)
    assert sys.path == path
    recipe = reading.complete({"data": DIGITS, "model": {"name": f"{tmp_path}/{name}/nets/net.py:make"}})
    (tmp_path / "run").mkdir()
    stored = store(recipe, tmp_path / "run").model.name
    assert stored == f"network/{name}/nets/net.py:make"
    copies = {str(file.relative_to(tmp_path / "run" / "network" / name)) for file in tmp_path.glob("run/**/*.py")}
    assert copies == set(PACKAGE)
    (tmp_path / name).rename(tmp_path / "gone")
    assert networks.build(f"{tmp_path}/run/{stored}", (1, 8, 8), 7)[3].weight.shape == (7, 8)
    (tmp_path / "gone" / "nets" / "__init__.py").unlink()
    (tmp_path / "gone" / "nets" / "net.py").write_text("import layers")
    monkeypatch.delitem(sys.modules, "layers", raising=False)  # of another network
    with pytest.raises(
        ModelError, match=r"imports 'layers'.*an empty __init__.py into each folder from '.*nets' to its"
    ):
        networks.build(f"{tmp_path}/gone/nets/net.py:make", (1, 8, 8), 7)


ODD = """
import torch
from torch import nn

def plain(outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, outputs))

class Odd(nn.Module):
    def __init__(self, outputs, way):
        super().__init__()
        self.net, self.way = plain(outputs), way

    def forward(self, x):
        y = self.net(x)
        if self.way == "wordless":
            assert False
        if self.way == "missing":
            import a_package_that_is_not_installed
        odd = {
            "row": y.unsqueeze(1), "flat": y.flatten(), "pair": (y, y), "dict": {"logits": y}, "half": y,
            "map": y[:, :, None, None].expand(-1, -1, 4, 4), "shares": y.softmax(dim=1),
        }
        return odd[self.way]

class Two(Odd):
    def forward(self, image, age):
        return image

def halved(outputs):
    return Odd(outputs, "half").half()

def keyless(outputs):
    return {}["width"]

network = plain(7)

def scripted(outputs):
    return torch.jit.script(plain(outputs))

def traced(outputs):
    return torch.jit.trace(plain(outputs), torch.zeros(2, 1, 8, 8))

def compiled(outputs):
    return torch.compile(plain(outputs), backend="eager")
"""


@pytest.mark.parametrize(
    ("factory", "options", "says"),
    [
        ("Odd", {"way": "row"}, r"\(2, 7\) for a batch of 2, got an output of shape \(2, 1, 7\); reshape"),
        ("Odd", {"way": "flat"}, r"got an output of shape \(14,\)"),
        ("Odd", {"way": "pair"}, "one tensor of logits.*got a tuple.*logits alone"),
        ("Odd", {"way": "dict"}, "one tensor of logits.*got a dict.*logits alone"),
        ("Odd", {"way": "map"}, "let it pool its map, so that it answers once for an image"),
        ("Odd", {"way": "shares"}, "got probabilities, whose sum is 1; leave its softmax out"),
        ("Odd", {"way": "wordless"}, r"AssertionError \(at .*odd.py:\d+: assert False\)"),
        ("Odd", {"way": "missing"}, "imports 'a_package_that_is_not_installed'.*install it with pip"),
        ("Two", {"way": "row"}, "'age'.*; let its forward pass take one input"),
        ("halved", {}, "with weights of float32, not torch.float16"),
        ("keyless", {}, "KeyError 'width'"),
        ("network", {}, "got a network, a Sequential; name the class, or a function"),
        ("halve", {}, "got none; did you mean halved"),
        ("scripted", {}, "before torch.jit.script"),
        ("traced", {}, "before torch.jit.script"),
        ("compiled", {}, "uncompiled.*train.compile=true"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_networks_with_odd_answers_get_the_cause_and_the_way_out(factory, options, says, tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    with pytest.raises(ModelError, match=says):
        networks.build(f"{tmp_path}/odd.py:{factory}", (1, 8, 8), 7, **options)


def test_layers_that_read_the_sequence_first_are_named():
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.fc = nn.Linear(8, 8), nn.Linear(8, 10)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x.squeeze(1)).transpose(0, 1)
            for layer in self.layers:
                x = layer(x)
            return self.fc(x.mean(0))

    with pytest.raises(PartitionError, match=r"batch, 2, as the first size.*\(5, 2, 8\); build .*batch_first=True"):
        LCTNetwork.cut(SequenceFirst(), torch.zeros(2, 1, 5, 8), CutRecipe(groups=3))


def test_weights_come_from_every_kind_of_file(file, tmp_path):
    recipe, data = recipe_of(f"{file}:Small"), datasets.load(recipes.DataRecipe())
    model = networks.build(recipe.model.name, data.facts.input_shape, 10)
    state = model.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "c.pt")
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.pth")
    for name in ("a.safetensors", "b.pth", "c.pt", "old.pth"):
        network = build_network(recipe, data.facts)
        with_weights = recipe_of(f"{file}:Small", train={"weights": str(tmp_path / name)})
        assert start.load_weights(network, with_weights, data.facts) is None
        assert all(torch.equal(value, state[key]) for key, value in network.main_state().items())


def test_a_run_folder_of_other_classes_gives_all_but_the_classifier_and_the_critics(file, tmp_path):
    run(recipe_of(f"{file}:Small"), tmp_path / "first")
    data = datasets.load(recipes.DataRecipe())
    other = replace(data.facts, outputs=7, classes=tuple("abcdefg"))
    recipe = recipe_of(f"{file}:Small", train={"weights": str(tmp_path / "first")})
    network, twin = (build_network(recipe, other) for _ in range(2))
    sentence = start.load_weights(network, recipe, other)
    assert sentence is not None
    assert "are for 10 classes, the data has 7" in sentence and "the critics start from scratch" in sentence
    before = run_folder.read_weights(tmp_path / "first")[0]
    for name, value in network.main_state().items():
        source = twin.main_state() if name.startswith("7.") else before
        assert torch.equal(value, source[name]), name
    assert all(torch.equal(value, twin.critics_state()[name]) for name, value in network.critics_state().items())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_whose_weights_read_inputs_of_another_scale_turn_theirs(name):
    for source, turns in (("default", True), (None, None)):
        train = {} if source is None else {"weights": source}
        recipe = reading.complete({"model": {"name": f"torchvision:{name}"}, "train": train})
        assert recipe.model.options.get("transform_input") is turns
    assert networks.build("torchvision:googlenet", (3, 64, 64), 10, transform_input=True).transform_input


def test_critics_that_do_not_fit_start_anew_and_that_is_said(file, tmp_path):
    run(recipe_of(f"{file}:Small", cut={"groups": 3}), tmp_path / "three")
    data = datasets.load(recipes.DataRecipe())
    recipe = recipe_of(f"{file}:Small", train={"weights": str(tmp_path / "three")})
    network = build_network(recipe, data.facts)
    sentence = start.load_weights(network, recipe, data.facts)
    assert sentence is not None and "the critics start from scratch" in sentence
    before = run_folder.read_weights(tmp_path / "three")[0]
    assert all(torch.equal(value, before[name]) for name, value in network.main_state().items())


def test_bytes_that_are_no_weights_at_all_are_refused(file, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="without running code"):
        run(recipe_of(f"{file}:Small", train={"weights": str(tmp_path / "w.pth")}), tmp_path / "run")


def test_weights_tied_within_a_group_are_kept_and_stay_tied(tmp_path):
    (tmp_path / "tied.py").write_text(TIED)
    recipe = recipe_of(f"{tmp_path}/tied.py:Tied", cut={"places": ["stem"]})
    run(recipe, tmp_path / "run")
    model = run_folder.open_run(tmp_path / "run").network.groups[1]
    assert torch.equal(model.a.weight, model.b.weight) and model.a.weight is model.b.weight


def test_a_last_minibatch_of_one_sample_is_refused_before_training_where_batch_norms_cannot_take_it(tmp_path):
    recipe = recipe_of("torchvision:resnet18", data={**DIGITS, "batch_size": 4, "validation": 0.98})
    with pytest.raises(DataError, match="at least two samples in every minibatch"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(recipe_of("mlp", data={**DIGITS, "batch_size": 4, "validation": 0.98}), tmp_path / "mlp")


def test_what_critics_behind_a_frozen_network_learn_is_set_in_the_methods_table(tmp_path, monkeypatch):
    (tmp_path / "posthoc.toml").write_text('[train]\nmethod = "posthoc"\nweights = "elsewhere"')
    runs = []
    monkeypatch.setattr(
        importlib.import_module("anytime_lct.cli.train"), "run", lambda recipe, *_, **__: runs.append(recipe)
    )
    arguments = ["train", "--recipe", str(tmp_path / "posthoc.toml"), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        program([*arguments, "--set", "posthoc.loss=distillation"])
    assert runs[0].section("posthoc", PostHocRecipe).loss == "distillation"


def test_a_classifier_of_another_size_starts_anew_and_that_is_said(file, tmp_path):
    torch.save(networks.build(f"{file}:Small", (1, 8, 8), 1000).state_dict(), tmp_path / "w.pth")
    recipe = recipe_of(f"{file}:Small", train={"weights": str(tmp_path / "w.pth")})
    (note, *_) = run(recipe, tmp_path / "run")
    says = f"The weights '{tmp_path}/w.pth' are for 1000 classes, the data has 10: "
    says += "7.weight and 7.bias start from scratch."
    assert note == Note(says)
    frozen = recipe_of(f"{file}:Small", train={"weights": str(tmp_path / "w.pth"), "method": "posthoc"})
    with pytest.raises(CheckpointError, match="cannot stay frozen"):
        run(frozen, tmp_path / "frozen")


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": Code()}, "without running code"),
        ({"a": 3}, "names and tensors"),
        ([1], "names and tensors"),
        ({"other": torch.zeros(2)}, "'0.bias' is missing|'other' is unknown"),
    ],
)
def test_files_that_hold_no_weights_of_the_network_are_refused(content, says, file, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=says):
        run(recipe_of(f"{file}:Small", train={"weights": str(tmp_path / "w.pth")}), tmp_path / "run")


def test_default_weights_are_taken_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ModelError, match=r"checkpoints/squeezenet1_1-.*get them from https://download.pytorch.org"):
        weights.default_weights("torchvision:squeezenet1_1", (3, 64, 64))
    with pytest.raises(ModelError, match="no default weights"):
        weights.default_weights("resnet20", (3, 32, 32))
    own = torchvision.models.squeezenet1_1().state_dict()
    (tmp_path / "checkpoints").mkdir()
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save(own, tmp_path / "checkpoints" / Path(url).name)
    shipped = weights.default_weights("torchvision:squeezenet1_1", (3, 64, 64))
    assert all(torch.equal(value, shipped[key]) for key, value in own.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:squeezenet1_1", (0.485, 0.456, 0.406)),
        ("timm:mixer_b16_224", (0.5, 0.5, 0.5)),
        ("resnet20", None),
    ],
)
def test_images_are_normalised_as_those_of_the_default_weights(name, expected):
    pytest.importorskip("timm")
    tables = {"data": {"name": "cifar10"}, "model": {"name": name}, "train": {"weights": "default"}}
    assert start.with_statistics(reading.complete(tables)).data.mean == expected
    tables["data"] = {"name": "cifar10", "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    assert start.with_statistics(reading.complete(tables)).data.mean == (0.1, 0.2, 0.3)
    half = reading.complete(tables | {"data": {"name": "cifar10", "std": [1, 1, 1]}})
    assert start.with_statistics(half) == half  # refused when the data is loaded
    for other in ({"train": {"weights": None}}, {"data": {"name": "fashion-mnist"}}):
        named = reading.complete(
            {"data": {"name": "cifar10"}} | {k: v for k, v in tables.items() if k != "data"} | other
        )
        assert start.with_statistics(named) == named


def test_timms_weights_that_are_not_there_are_named(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"models--timm--resnet18.a1_in1k/model.safetensors[^\n]*data.download=true"):
        weights.default_weights("timm:resnet18", (3, 64, 64))


@pytest.mark.parametrize("loss", ["cross-entropy", "paper", "mixed", "distillation"])
def test_exits_are_fitted_behind_a_network_that_stays_to_the_bit(loss, file, tmp_path):
    """Against the same steps by hand; statistics of batch norm stay too."""
    model = networks.build(f"{file}:Small", (1, 8, 8), 10)
    model.train()(torch.randn(50, 1, 8, 8))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    recipe = recipe_of(
        f"{file}:Small",
        cut={"places": ["2", "4"]},
        posthoc={"loss": loss, "temperature": 2.0},
        train={"weights": str(tmp_path / "w.pth"), "method": "posthoc"},
    )
    run(recipe, tmp_path / "run")
    written = checkpoint.load_tensors(tmp_path / "run" / "main.safetensors")
    assert all(torch.equal(value, written[key]) for key, value in model.state_dict().items())
    data, opened = datasets.from_recipe(recipe), run_folder.open_run(tmp_path / "run").network
    x = next(iter(data.batches("test")))[0]
    assert torch.equal(opened.sub_model(3)(x), model.eval()(x))

    network = build_network(recipe, data.facts)
    start.load_weights(network, recipe, data.facts)
    network.groups.eval()
    optimizer = torch.optim.Adam(network.critics.parameters(), 1e-2)
    for x, y in data.batches("train"):
        optimizer.zero_grad()
        *exits, main = network(x)
        L = [F.cross_entropy(Z, y, reduction="none") for Z in (*exits, main)]
        for i, Z in enumerate(exits):
            matching = (L[i] - L[i + 1].detach()).abs().mean()
            soft, own = (main / 2).log_softmax(1), (Z / 2).log_softmax(1)
            losses = {
                "cross-entropy": L[i].mean(),
                "paper": matching,
                "mixed": matching + recipe.rule.cross_entropy * L[i].mean(),
                "distillation": 4 * (soft.exp() * (soft - own)).sum(1).mean(),
            }
            losses[loss].backward(inputs=list(network.critics[i].parameters()))
        optimizer.step()
    for name, value in network.critics_state().items():
        torch.testing.assert_close(opened.critics_state()[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        ({"shares": [0.5, 0.2]}, "rise from exit to exit"),
        ({"shares": [0.5], "places": ["a", "b"]}, "1 shares make 2 groups"),
        ({"shares": [0.2, 0.5], "groups": 2}, "2 shares make 3 groups"),
        ({"shares": [1.5]}, "less than 1"),
    ],
)
def test_shares_that_contradict_are_refused(cut, says):
    with pytest.raises(RecipeError, match=says):
        reading.complete({"cut": cut})


def test_the_command_line_goes_the_whole_way_with_a_users_file(file, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    common = ["--data", "digits", "--epochs", "1", "--model", "own.py:deep", "--json"]

    def call(*words: str) -> dict:
        with pytest.raises(SystemExit) as end:
            program(list(words))
        out, err = capfd.readouterr()
        assert not end.value.code, err
        return json.loads(out)

    assert call("train", *common, "--method", "bp")["run"] == "runs/digits-own.py-deep-0"
    frozen = ["--weights", "runs/digits-own.py-deep-0/main.safetensors", "--method", "posthoc", "--run-dir", "fitted"]
    exits = ["--budget-flops", "0.3,0.9", "--set", "posthoc.loss=distillation"]
    call("train", *common, *frozen, *exits)
    recipe = reading.read(Path("fitted") / "recipe.toml")
    loss = recipe.section("posthoc", PostHocRecipe).loss
    assert (recipe.train.method, loss, recipe.cut.shares) == (
        "posthoc",
        "distillation",
        (0.3, 0.9),
    )
    profile = call("analyze", "fitted", "--json")
    assert [cost["flops"] for cost in profile["groups"]] == [6400, 10000, 11000]
    assert call("export", "fitted", "--out", "bundle", "--json")["model"] == "own.py:deep"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--budget-flops", "half"], "like 20%,40%,70% of the main network's multiply-adds, or 20M,30M, got 'half'"),
        (["--groups", "4", "--set", "cut.groups=2"], "one value for cut.groups, got 2 by --set and 4 by its own flag"),
        (["--set", "train.seed=1", "--set", "train.seed=2"], "one value for train.seed, got 2 by --set and 1 by anoth"),
        (["--set", "cut.by=evenly"], "'evenly': input should be 'shares', 'layers', 'balanced',"),
        (["--budget-flops", "0.5", "--groups", "4"], "1 shares make 2 groups, but groups = 4"),
        (["--method", "post-hoc"], "There is no training method 'post-hoc'; did you mean posthoc?"),
        (["--model", "squeezenet1_1"], "no network 'squeezenet1_1'; did you mean torchvision:squeezenet1_1?"),
        (
            ["--method", "posthoc"],
            "Expected train.weights with method posthoc, the run folder or file whose main network it freezes",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words, says, tmp_path, capfd):
    with pytest.raises(SystemExit) as end:
        program(["train", "--run-dir", str(tmp_path / "run"), *words])
    assert end.value.code == 2 and says in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "run").exists()
