"""Tables of images and shards of tar files: the minibatches of the folder that they came from, and what is refused."""

from __future__ import annotations

import io
import json
import socket
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from anytime_lct.cli.train import default_folder
from anytime_lct.data import datasets, locations
from anytime_lct.errors import DataError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import DataRecipe

CLASSES = ("cat", "dog")
SIZES = {"train": 9, "test": 4}


def write_folder(root):
    """Pictures of two classes in two parts: their sizes differ, and one is turned by its EXIF."""
    random = np.random.default_rng(0)
    for part, count in SIZES.items():
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                exif = Image.Exif()
                exif[0x0112] = 6 if number == 1 else 1
                picture = Image.fromarray(random.integers(0, 256, (12, 8 + number, 3), dtype=np.uint8))
                picture.save(root / part / name / f"{number}.jpg", exif=exif)
    return root


def files_of(root, part):
    return [(path, CLASSES.index(path.parent.name)) for path in sorted((root / part).glob("*/*.jpg"))]


def write_tar(path, samples):
    """A tar file of samples by key, each a mapping from extension to content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, sample in samples.items():
            for extension, content in sample.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pictures") / "folder")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    library = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(
            socket, "getaddrinfo", lambda *_, **__: pytest.fail("a data set on this machine asks the network")
        )
        library.disable_progress_bars()
        yield library


@pytest.fixture(scope="module")
def tables(library, folder):
    """The folder as tables of its files, by part."""
    features = library.Features({"picture": library.Image(), "kind": library.ClassLabel(names=list(CLASSES))})
    tables = {}
    for part in SIZES:
        files = files_of(folder, part)
        cells = [{"bytes": path.read_bytes(), "path": None} for path, _ in files]
        columns = {"picture": cells, "kind": [label for _, label in files]}
        tables[part] = library.Dataset.from_dict(columns, features=features)
    return library.DatasetDict(tables)


def load(name, **options):
    return datasets.load(DataRecipe(name=name, batch_size=5, image_size=8, **options), seed=3)


def expect_same(name, folder, **options):
    ours, expected = load(name, **options), load("imagefolder", root=str(folder))
    assert ours.facts.classes == CLASSES and ours.facts.counts == expected.facts.counts
    assert (ours.facts.mean, ours.augment, ours.facts.resize) == (expected.facts.mean, expected.augment, 9)
    for split, epoch in (("train", 0), ("train", 1), ("validation", 0), ("test", 0)):
        pairs = list(zip(ours.batches(split, epoch), expected.batches(split, epoch), strict=True))
        assert pairs and all(torch.equal(a, b) for mine, other in pairs for a, b in zip(mine, other, strict=True))


@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_tables_give_the_minibatches_of_the_folder(tmp_path, folder, tables, kind):
    path = tmp_path / "table"
    if kind == "disk":
        tables.save_to_disk(path)
    for part in SIZES if kind == "parquet" else ():
        tables[part].to_parquet(path / f"{part}-00000-of-00001.parquet")
    expect_same(f"hf:{path}", folder)


@pytest.mark.parametrize("kind", ["cls", "json", "classes.txt"])
def test_shards_give_the_minibatches_of_the_folder(tmp_path, folder, kind):
    pytest.importorskip("webdataset")
    for part in SIZES:
        samples = {}
        for number, (path, label) in enumerate(files_of(folder, part)):
            text = {"cls": CLASSES[label], "json": json.dumps({"label": CLASSES[label]}), "classes.txt": str(label)}
            extension = "json" if kind == "json" else "cls"
            samples[f"{part}/{number}"] = {extension: text[kind].encode(), "jpg": path.read_bytes()}
        keys = list(samples)
        for number, some in enumerate((keys[:3], keys[3:])):
            write_tar(tmp_path / f"{part}-{number:03}.tar", {key: samples[key] for key in some})
    if kind == "classes.txt":
        (tmp_path / kind).write_text("\n".join(CLASSES))
    name = {"cls": f"wds:{tmp_path}/{{train,test}}-{{000..001}}.tar", "json": "wds:*.tar", "classes.txt": "wds:."}[kind]
    expect_same(name, folder, root=str(tmp_path))


def test_readers_read_shards_as_one_process_does(tmp_path, folder):
    pytest.importorskip("webdataset")
    samples = {
        str(number): {"jpg": path.read_bytes(), "cls": str(label).encode()}
        for number, (path, label) in enumerate(files_of(folder, "train"))
    }
    write_tar(tmp_path / "all.tar", samples)
    alone, read = (load("wds:all.tar", root=str(tmp_path), workers=workers) for workers in (0, 1))
    assert alone.facts.counts == (14, 2, 2) and "no test part" in alone.notes[0]
    pairs = zip(alone.batches("train"), read.batches("train"), strict=True)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def test_columns_are_found_or_named(tmp_path, library, folder):
    image = files_of(folder, "train")[0][0].read_bytes()
    path, columns = tmp_path / "rows.parquet", {"scan": [image] * 20, "label": ["b", "a"] * 10, "note": ["x"] * 20}
    library.Dataset.from_dict(columns).to_parquet(path)
    assert load(f"hf:{path}").facts.classes == ("a", "b")
    assert load(f"hf:{path}", label_column="note").facts.classes == ("x",)
    library.Dataset.from_dict({**columns, "mask": [image] * 20, "label": [None, "a"] * 10}).to_parquet(path)
    with pytest.raises(DataError, match=r"^Expected one column of images in .*, got scan, label, note, mask; name it"):
        load(f"hf:{path}")
    with pytest.raises(DataError, match=r"label of every image, got None for item 0 of the train part"):
        load(f"hf:{path}", input_column="scan")
    with pytest.raises(DataError, match=r"^Expected the column 'kind' in .*; name it with --set data.label_column="):
        load(f"hf:{path}", input_column="scan", label_column="kind")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "hf:owner/name",
            r"^Expected data on this machine, but '.*owner/name' is not there, .*; get it first, .*: hf download",
        ),
        ("hf:card", r"^Expected files on this machine in '.*README.md', got an address"),
        ("hf:bad.parquet", r"^The data set 'hf:bad.parquet' in '.*' cannot be read: "),
        ("hf:notes.txt", r"^Expected a folder, or a file .parquet, .*, as 'hf:notes.txt', got another kind.$"),
    ],
)
def test_tables_that_are_refused(tmp_path, library, caplog, name, sentence):
    (tmp_path / "card").mkdir()
    card = "---\nconfigs:\n- data_files:\n  - split: train\n    path: https://example.com/a.parquet\n---\n"
    (tmp_path / "card" / "README.md").write_text(card)
    for file in ("bad.parquet", "notes.txt"):
        (tmp_path / file).write_text("junk")
    with pytest.raises(DataError, match=sentence):
        load(name, root=str(tmp_path))


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ({"cls": b"1"}, r"^Expected one image in the sample '.*a.tar:k', got none; name its extension"),
        ({"jpg": b"", "l.jpg": b"", "cls": b"1"}, r"^Expected one image in the sample '.*', got jpg, l.jpg; name"),
        ({"jpg": b""}, r"^Expected a label in the sample '.*a.tar:k', as cls or in its JSON, got none; name"),
        ({"jpg": b"", "json": b"{"}, r"^Expected JSON in '.*k.json', got something else"),
        (
            {"jpg": b"", "json": b'{"label": null}'},
            r"^Expected the number of its class as the label of every image, got None",
        ),
        ({"jpg": b"no image", "cls": b"0"}, r"^The image '.*a.tar:k.jpg' cannot be read"),
        (None, r"^Expected an uncompressed tar file, whole, as '.*a.tar', got one that cannot be read"),
    ],
)
def test_shards_that_are_refused(tmp_path, sample, sentence):
    pytest.importorskip("webdataset")
    path = write_tar(tmp_path / "a.tar", {"k": sample or {"jpg": b"7" * 2000}})
    if sample is None:
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=sentence):
        load("wds:a.tar", root=str(tmp_path))


def test_a_run_keeps_the_place_of_its_data(tmp_path):
    recipe = DataRecipe(name="wds:sets/{train,test}/a-{0..3}.tar")
    located = locations.located(recipe, tmp_path)
    assert (located.name, located.root) == ("wds:{train,test}/a-{0..3}.tar", str(tmp_path / "sets"))
    moved = located.model_copy(update={"root": "/elsewhere"})
    assert locations.located(moved, tmp_path) == moved
    table = locations.located(DataRecipe(name="hf:../birds", root="x/y"), tmp_path)
    assert (table.name, table.root) == ("hf:birds", str(tmp_path / "x"))
    name = default_folder(reading.complete({"data": {"name": "hf:/home/me/birds"}})).name
    assert name == "hf-birds-0" and locations.shown("wds:/a/b-{0..3}.tar") == "wds:b-{0..3}.tar"
    with pytest.raises(
        DataError, match=r"^Expected data on this machine, but '.*http:/a/b.tar' is not there, and noth"
    ):
        load("wds:http://a/b.tar")
