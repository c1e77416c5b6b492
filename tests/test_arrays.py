"""Data that are no images, numbers of any shape and tokens: read, trained, exported and answered."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from serving_process import Server
from torch import nn

from anytime_lct.counting import count
from anytime_lct.critics import kinds
from anytime_lct.critics.residual import plan
from anytime_lct.data import datasets
from anytime_lct.errors import CriticError, DataError, ExportError, InputError, ModelError
from anytime_lct.models import networks
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import CutRecipe, DataRecipe
from anytime_lct.run_folder.folder import open_run
from anytime_lct.runtime import AnytimeSession
from anytime_lct.runtime.inputs import read
from anytime_lct.verbs import analyze, export, train

SCALES = np.array([1e-3, 1.0, 1e4])
CONVOLUTIONS = """
from torch import nn

class Block(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(inner, outer, 3, 2, 1), nn.BatchNorm1d(outer)
    def forward(self, x):
        return self.norm(self.conv(x)).relu()

def make(input_shape, outputs):
    blocks = [Block(input_shape[0], 8), Block(8, 16), Block(16, 16)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, outputs))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, dice = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    x = dice.normal(size=(240, 3)) * SCALES + 5
    y = ((x - 5) / SCALES).sum(axis=1) > 0
    np.savez(folder / "vectors.npz", X=x, y=np.where(y, "up", "down"))
    waves = np.sin(np.arange(24) * np.where(y, 0.5, 1.5)[:, None])[:, None] + dice.normal(size=(240, 2, 24)) / 9
    np.savez(folder / "signals.npz", train_x=waves[:200], train_y=y[:200, None], test_x=waves[200:], test_y=y[200:])
    tokens = dice.integers(0, 20, (240, 12))
    hot = np.eye(2, dtype=int)[(tokens < 10).sum(axis=1) // 7]
    np.savez(folder / "tokens.npz", x=tokens, y=hot, classes=["few", "many"], tokens=32)
    np.savez(folder / "images.npz", x_train=np.zeros((9, 6, 5), np.uint8), y_train=np.arange(9) % 2)
    (folder / "net.py").write_text(CONVOLUTIONS)
    return folder


def recipe_of(folder, name, model=None, **keys):
    data = {"name": f"npz:{folder / name}.npz", "batch_size": 64, **keys}
    small = {"name": "lstm-classifier", "layers": 2, "units": 8, "embedding": 4}
    chosen = {"vectors": {"name": "mlp", "hidden": [16, 16]}, "signals": {"name": f"{folder}/net.py:make"}}
    tables = {"data": data, "model": model or chosen.get(name, small), "train": {"epochs": 1, "log": []}}
    return reading.complete(tables | {"cut": {"groups": 2}})


@pytest.fixture(scope="module")
def bundles(folder, tmp_path_factory):
    """Bundles of all three kinds, in a folder for a server."""
    out = tmp_path_factory.mktemp("made") / "bundles"
    for name in ("vectors", "signals", "tokens"):
        run = out.parent / f"run-{name}"
        train(recipe_of(folder, name), run)
        analyze(run)
        export(run, out / name)
    return out


def test_arrays_of_a_file_become_parts_classes_and_tokens(folder):
    facts = {name: datasets.from_recipe(recipe_of(folder, name)).facts for name in ("vectors", "signals", "tokens")}
    assert [(each.input_shape, each.classes, each.tokens) for each in facts.values()] == [
        ((3,), ("down", "up"), 0), ((2, 24), ("0", "1"), 0), ((12,), ("few", "many"), 32),
    ]  # fmt: skip
    assert facts["signals"].counts == (180, 20, 40) and facts["vectors"].counts == (192, 24, 24)
    assert all(each.samples == "samples" for each in facts.values())


def test_the_network_gets_standardised_floats_and_tokens_as_they_are(folder):
    data = datasets.from_recipe(recipe_of(folder, "vectors"))
    x = torch.cat([x for x, _ in data.batches("train")])
    assert x.mean(dim=0).abs().max() < 1e-3 and (x.std(dim=0, correction=0) - 1).abs().max() < 1e-3
    raw = np.load(folder / "vectors.npz")["X"]
    assert np.abs(data.facts.raw(x).numpy()[:, None] - raw).min(axis=1).max() < 1e-2
    waves = torch.cat([x for x, _ in datasets.from_recipe(recipe_of(folder, "signals")).batches("train")])
    assert abs(waves.mean()) < 1e-4 and abs(waves.std() - 1) < 1e-3
    tokens = next(datasets.from_recipe(recipe_of(folder, "tokens")).batches("test"))[0]
    assert tokens.dtype == torch.int64 and tokens.shape == (24, 12)


def test_minibatches_follow_from_seed_and_epoch_and_shares_put_them_together(folder):
    data = datasets.from_recipe(recipe_of(folder, "tokens"))
    whole = [x for x, _ in data.batches("train", epoch=1)]
    assert torch.equal(whole[2], next(iter(data.batches("train", epoch=1, start=2)))[0])
    halves = [[x for x, _ in data.batches("train", epoch=1, share=(k, 2))] for k in (0, 1)]
    assert all(torch.equal(torch.cat(pair), x) for *pair, x in zip(*halves, whole, strict=True))
    assert not torch.equal(whole[0], next(data.batches("train", epoch=2))[0])


def test_items_that_draw_at_random_are_read_anew_and_follow_from_seed_epoch_and_number(tmp_path):
    (tmp_path / "noisy.py").write_text(
        "import torch\n\nclass Noisy:\n    def __len__(self): return 20\n"
        "    def __getitem__(self, k): return torch.randn(4), k % 2\n\n"
        "def make(): return {'train': Noisy(), 'test': Noisy()}\n"
    )
    recipe = DataRecipe(name=f"{tmp_path}/noisy.py:make", batch_size=9)
    first, again = (datasets.load(recipe, seed=1) for _ in range(2))
    for epoch in (0, 1):
        pairs = zip(first.batches("train", epoch), again.batches("train", epoch), strict=True)
        assert all(torch.equal(x, other) for (x, _), (other, _) in pairs)
    assert not torch.equal(next(first.batches("train", 0))[0].sum(), next(first.batches("train", 1))[0].sum())


def test_tokens_that_are_read_on_demand_are_compared_with_their_number(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n\nclass Drawn:\n    def __len__(self): return 20\n"
        "    def __getitem__(self, k): return torch.randint(0, 9, (60,)), k % 2\n\n"
        "def make(): return {'train': Drawn(), 'test': Drawn(), 'tokens': 5}\n"
    )
    with pytest.raises(DataError, match="tokens from 0 to 4, got"):
        list(datasets.load(DataRecipe(name=f"{tmp_path}/mine.py:make", validation=0.0)).batches("train"))


@pytest.mark.parametrize(
    ("items", "keys", "expected"),
    [
        ("[([1.0] * (2 + k), 0) for k in (0, 1)]", {}, r"shape \(2,\) as the first sample is, got .*\(3,\).*padding"),
        ("[([float('nan')], 0)]", {}, "finite numbers, got NaN"),
        ("[([1, 7], 0)] * 9, 'tokens': 5", {}, "tokens from 0 to 4, got 7"),
        ("[([-1, 7], 0)] * 9", {}, "tokens from 0 to 7, got -1"),
        ("[([1, 2000000], 0)] * 9", {}, "tokens from 0 to 1048575, got 2000000.*floats for amounts"),
        ("[([1.0], 1700000000)] * 9", {}, "numbers of classes .* got 1700000000 among 9 samples"),
        ("[([1.0], 0)] * 9", {"mixup": 0.1}, "data.mixup for images only"),
        ("[([1.0], 0)] * 9", {"augment": "flip"}, "data.augment for images only"),
        ("[(['word'], 0)] * 9", {"inputs": "arrays"}, "an array of numbers, got list"),
        ("[('a word', 0), (7, 1)] * 9", {}, "a text in row 1 of the train part .* got 7"),
        ("[(torch.full((3, 4, 4), 2.0), 0)] * 9", {}, "set data.inputs=arrays for numbers that are no pixels"),
    ],
)
def test_what_is_no_array_is_one_sentence(tmp_path, items, keys, expected):
    (tmp_path / "mine.py").write_text(f"import torch\n\ndef make(): return {{'train': {items}}}\n")
    with pytest.raises(DataError, match=expected):
        datasets.load(DataRecipe(name=f"{tmp_path}/mine.py:make", **keys))


def test_a_kind_that_is_named_counts(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\n\ndef make(): return {'train': [(torch.rand(3, 4, 4), 0)] * 9}\n")
    kinds_of = [
        datasets.load(DataRecipe(name=f"{tmp_path}/mine.py:make", inputs=each)).facts.inputs
        for each in ("auto", "arrays", "images")
    ]
    assert kinds_of == ["image", "array", "image"]


def test_files_that_hold_no_data_are_one_sentence(folder, tmp_path):
    assert datasets.from_recipe(recipe_of(folder, "images")).facts.input_shape == (1, 6, 5)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "short.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}]), y=np.zeros(2))
    for name, expected in {
        "missing": "is not there", "broken": "damaged, or no .npz", "other": "x_train and y_train, or x and y",
        "short": "a label for each sample", "objects": "Python objects",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=expected):
            datasets.load(DataRecipe(name=f"npz:{tmp_path / name}.npz"))


@pytest.mark.parametrize("name", ["vectors", "signals", "tokens"])
def test_a_bundle_takes_the_numbers_of_the_data(bundles, folder, name):
    session, run = AnytimeSession(bundles / name), open_run(bundles.parent / f"run-{name}")
    data = datasets.from_recipe(run.recipe)
    x, _ = next(data.batches("test"))
    raw = data.facts.raw(x).numpy()
    with torch.no_grad():
        for i in session.served:
            expected = run.network.sub_model(i).eval()(x).numpy()
            assert np.abs(session.run_to(i, raw).logits - expected).max() < 1e-3
    np.save(bundles.parent / f"{name}.npy", raw)
    portions = list(read(str(bundles.parent / f"{name}.npy"), session.manifest))
    assert np.array_equal(np.concatenate([portion.x for portion in portions]), raw)
    np.save(bundles.parent / "one.npy", raw[0])
    assert next(read(str(bundles.parent / "one.npy"), session.manifest)).x.shape == raw[:1].shape


def test_other_arrays_are_refused_by_a_bundle(bundles, tmp_path):
    cases = {
        "vectors": (np.zeros((2, 4)), r"samples of shape \(3,\), with or without a batch"),
        "signals": (np.array(["a"]), "numbers, got"),
        "tokens": (np.zeros((1, 12)), "whole numbers of tokens, got float64"),
    }
    for name, (array, expected) in cases.items():
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(InputError, match=expected):
            next(read(str(tmp_path / "x.npy"), AnytimeSession(bundles / name).manifest))
    np.save(tmp_path / "x.npy", np.full((1, 12), 32))
    with pytest.raises(InputError, match="0 to 31, got 32"):
        next(read(str(tmp_path / "x.npy"), AnytimeSession(bundles / "tokens").manifest))
    (tmp_path / "x.txt").write_text("1 2 3")
    with pytest.raises(InputError, match=r"a \.npy file for this network"):
        next(read(str(tmp_path / "x.txt"), AnytimeSession(bundles / "tokens").manifest))


def test_a_server_answers_numbers_and_tokens(bundles):
    with Server(bundles) as server:

        def ask(model, datatype, shape, data):
            body = {"inputs": [{"name": "input", "datatype": datatype, "shape": shape, "data": data}]}
            request = urllib.request.Request(f"{server.address}/v2/models/{model}/infer", json.dumps(body).encode())
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)["outputs"][0]["shape"]

        assert ask("vectors", "FP32", [2, 3], [500.0] * 6) == [2, 2]
        assert ask("signals", "FP64", [1, 2, 24], [0.5] * 48) == [1, 2]
        assert ask("tokens", "INT64", [1, 12], [3] * 12) == [1, 2]
        with urllib.request.urlopen(f"{server.address}/v2/models/tokens") as answer:
            assert json.load(answer)["inputs"] == [{"name": "input", "datatype": "INT64", "shape": [-1, 12]}]
        raw = np.full((2, 12), 5, np.int64).tobytes()
        headers = {"Inference-Header-Content-Length": "0"}
        urllib.request.urlopen(urllib.request.Request(f"{server.address}/v2/models/tokens/infer", raw, headers)).close()
        for model, datatype in (("tokens", "BYTES"), ("vectors", "UINT8")):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                ask(model, datatype, [1], ["a"])


def test_networks_on_floats_have_an_int8_form_and_on_tokens_none(bundles, tmp_path):
    export(bundles.parent / "run-signals", tmp_path / "int8", int8_samples=32)
    assert AnytimeSession(tmp_path / "int8").manifest.precision == "int8"
    with pytest.raises(ExportError, match="one on tokens"):
        export(bundles.parent / "run-tokens", tmp_path / "none", int8_samples=32)


def test_the_network_follows_from_the_samples_where_none_is_named():
    assert networks.suited((9,), 0)["name"] == "mlp"
    assert {networks.suited(shape, tokens)["name"] for shape, tokens in (((9, 3), 0), ((9,), 50))} == {
        "lstm-classifier"
    }
    assert networks.suited((3, 32, 32), None) == {"name": "resnet20"}
    for name, shape, tokens in (
        ("mlp", (9,), None),
        ("mlp", (9,), 5),
        ("resnet20", (9,), 5),
        ("lstm-classifier", (9,), None),
    ):
        with pytest.raises(ModelError, match=f"'{name}'"):
            networks.build(name, shape, 2, tokens)


def test_a_signal_has_a_critic_of_convolutions_along_it():
    network = LCTNetwork.cut(
        nn.Sequential(nn.Conv1d(2, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 24, 3), nn.ReLU(),
                      nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 3)),
        torch.zeros(2, 2, 24), CutRecipe(places=("2",), shares=(0.9,)),
    )  # fmt: skip
    assert network.critics[0](torch.zeros(2, 24, 24)).shape == (2, 3)
    kernels = {part.kernel_size for part in network.critics[0].modules() if isinstance(part, nn.Conv2d)}
    assert kernels <= {(3, 1), (1, 1)} and (3, 1) in kernels
    assert kinds.layout(torch.zeros(2, 24, 9), channels=24) == "signal"
    assert kinds.layout(torch.zeros(2, 24, 24), channels=24) == "tokens"
    assert kinds.layout(torch.zeros(2, 24, 24), channels=24, convolved=True) == "signal"
    sizes = plan((24, 256, 1), outputs=3)
    assert sizes.strides == (2, 2, 1) and sizes.multiply_adds == sum(
        part.weight.numel() * side for part, side in zip(
            [m for m in sizes.build().modules() if isinstance(m, nn.Conv2d | nn.Linear)],
            [128, 128, 128, 64, 64, 64, 64, 64, 1], strict=True)
    )  # fmt: skip


def test_a_volume_has_a_critic_of_3d_convolutions_within_its_budget():
    x = torch.zeros(2, 8, 32, 16, 16)
    assert kinds.layout(x) == "volume"
    for budget in (1e5, 3e6, 3e7):
        sizes = plan((8, 32, 16, 16), outputs=3, budget=budget)
        assert sizes.multiply_adds == count(sizes.build().eval(), x[:1]).flops <= budget
        assert sizes.build()(x).shape == (2, 3)
    assert sizes.strides[:2] == (2, 2) and {type(part) for part in sizes.build().modules()} >= {nn.Conv3d}
    with pytest.raises(CriticError, match="'slim' critic cannot read a volume"):
        kinds.build("slim", x, 3)
    network = LCTNetwork.cut(
        nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.ReLU(),
                      nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3)),
        torch.zeros(2, 1, 12, 12, 12), CutRecipe(places=("2",), shares=(0.9,)),
    )  # fmt: skip
    assert network.critics[0](torch.zeros(2, 8, 12, 12, 12)).shape == (2, 3)


def test_a_loop_of_ones_own_takes_arrays_to_a_bundle(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(9, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    x = torch.randint(0, 9, (32, 5))
    network = LCTNetwork.cut(model, x[:2])
    data = [(x, (x.sum(dim=1) > 20).long())]
    assert export(network, tmp_path / "tokens", data={"test": data}).manifest.symbols == 9
    vectors = LCTNetwork([nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 2)], critics=[nn.Linear(4, 2)])
    bundle = export(vectors, tmp_path / "vectors", data={"test": [(x.float(), data[0][1])]})
    assert bundle.manifest.preprocessing.shape == (5,)
    answer = AnytimeSession(tmp_path / "vectors").run(x.float().numpy())
    assert (
        np.abs(answer.logits - vectors.sub_model(int(answer.exits[0])).eval()(x.float()).detach().numpy()).max() < 1e-5
    )
