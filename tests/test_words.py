"""Texts with a class: columns of words become tokens, in training and where a bundle is asked about them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from serving_process import Server

from anytime_lct import texts
from anytime_lct.data import datasets
from anytime_lct.errors import BundleError, DataError, InputError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import DataRecipe
from anytime_lct.run_folder.folder import expect_same_data, open_run
from anytime_lct.runtime import AnytimeSession
from anytime_lct.runtime.inputs import files_of, read
from anytime_lct.runtime.preprocess import from_text
from anytime_lct.verbs import analyze, export, train

library = pytest.importorskip("datasets")
pytest.importorskip("tokenizers")

GOOD, BAD, OTHERS = "good fine great", "bad poor sad", "the plot of a film and its actors"


def review(k):
    words = np.random.default_rng(k).permutation(f"{BAD if k % 2 else GOOD} {OTHERS}".split())
    return " ".join([*words[: 6 + k % 5].tolist(), (BAD if k % 2 else GOOD).split()[k % 3]])


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    lines = [f"{k},{review(k)},{len(review(k))},{'down' if k % 2 else 'up'}" for k in range(200)]
    path.write_text("\n".join(["id,review,letters,sentiment", *lines]))
    return path


@pytest.fixture(scope="module")
def bundle(reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    small = {"name": "lstm-classifier", "layers": 2, "units": 16, "embedding": 16}
    tables = {"data": {"name": f"hf:{reviews}"}, "model": small, "train": {"epochs": 15, "log": []}}
    train(reading.complete(tables | {"cut": {"groups": 2}}), folder / "run")
    analyze(folder / "run")
    return export(folder / "run", folder / "bundles" / "reviews").path


def load(path, **keys):
    return datasets.load(DataRecipe(name=f"hf:{path}", batch_size=8, **keys))


def test_a_column_of_texts_becomes_tokens_of_one_length(reviews):
    data = load(reviews)
    facts = data.facts
    assert (facts.classes, facts.inputs, len(facts.input_shape)) == (("down", "up"), "array", 1)
    assert facts.tokens == texts.vocabulary_size(facts.tokenizer) > 256
    assert data.notes[0] == "Samples are the column review, labels sentiment; left out: id, letters."
    assert f"to {facts.input_shape[0]} tokens, of {facts.tokens} different ones" in data.notes[1]
    assert load(reviews).facts == facts  # equal texts give an equal tokenizer
    x, _ = next(data.batches("test"))
    assert x.dtype == torch.int64 and bool((x == 0).any())  # shorter ones are filled up
    assert load(reviews, tokens=5).facts.input_shape == (5,)


@pytest.mark.parametrize(
    ("columns", "keys", "chosen"),
    [
        ({"words": [f"line {k}" for k in range(9)], "sort": ["a", "b", "c"] * 3}, {}, "words"),
        ({"Text": [f"line {k}" for k in range(9)], "width": [0.5] * 9, "label": [0, 1, 2] * 3}, {}, "Text"),
        ({"name": [f"Ann {k}" for k in range(9)], "age": [0.5, 7.0, 9.0] * 3, "label": [0, 1, 2] * 3}, {}, "age"),
        (
            {"name": [f"Ann {k}" for k in range(9)], "age": [0.5, 7.0, 9.0] * 3, "label": [0, 1, 2] * 3},
            {"input_column": "name"},
            "name",
        ),
        ({"text": [f"line {k}" for k in range(9)], "stars": [0.5, 7.0, 9.0] * 3}, {}, "text"),
        ({"title": ["Mr", "Ms", "Dr"] * 3, "age": [0.5, 7.0, 9.0] * 3, "label": [0, 1, 2] * 3}, {}, "age"),
    ],
)
def test_texts_are_told_from_names_of_classes(tmp_path, columns, keys, chosen):
    library.Dataset.from_dict(columns).to_parquet(tmp_path / "table.parquet")
    data = load(tmp_path / "table.parquet", **keys)
    assert data.notes[0].startswith(f"Samples are the column {chosen}, ")
    assert bool(data.facts.tokenizer) == (chosen != "age")
    assert data.facts.task == ("regression" if "stars" in columns else "classification")


def test_rows_without_a_text_are_counted_and_all_of_them_refused(tmp_path):
    columns = {"text": ["a b", None, " ", "c d", "e f", "g"], "label": [0, 1, 0, 1, 0, 1]}
    library.Dataset.from_dict(columns).to_parquet(tmp_path / "some.parquet")
    assert "2 of 6 texts of the train part are empty." in load(tmp_path / "some.parquet").notes
    library.Dataset.from_dict({"text": [" ", "  ", ""], "label": [0, 1, 0]}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"texts in the train part .* got empty ones alone; name another column"):
        load(tmp_path / "none.parquet")


def test_a_tokenizer_of_ones_own_counts(reviews, tmp_path):
    content = texts.make_tokenizer(["a film of its own"] * 4)
    (tmp_path / "mine.json").write_text(content)
    facts = load(reviews, tokenizer=str(tmp_path / "mine.json"), tokens=6).facts
    padded = json.loads(content) | {"padding": json.loads(facts.tokenizer)["padding"] | {"pad_token": "Ġfilm"}}
    assert '"pad_token":"Ġfilm"' in texts.fit_tokenizer(json.dumps(padded, ensure_ascii=False), ["a"]).replace(
        ": ", ":"
    )
    assert facts.tokens == texts.vocabulary_size(content) and facts.input_shape == (6,)
    tokens = texts.as_tokens(["film", "a film of its own, and of others"], facts.tokenizer)
    assert tokens.shape == (2, 6) and tokens[0, -1] == 0 != tokens[1, -1]
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"a tokenizer.json of the library tokenizers .*it is no tokenizer"):
        load(reviews, tokenizer=str(tmp_path / "other.json"))
    with pytest.raises(DataError, match=r"none.json', which cannot be read: No such file.*data.tokenizer=FILE"):
        load(reviews, tokenizer=str(tmp_path / "none.json"))


def test_texts_of_ones_own_code_become_tokens(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def make():\n"
        "    rows = [(f'a film {k}', k % 2) for k in range(60)]\n"
        "    return {'train': rows[:40], 'test': rows[40:], 'classes': ['no', 'yes']}\n"
    )
    data = datasets.load(DataRecipe(name=f"{tmp_path}/mine.py:make", batch_size=8))
    assert data.facts.tokenizer and data.facts.classes == ("no", "yes") and data.num_samples("test") == 20


def test_a_bundle_answers_texts_as_it_was_measured(bundle, tmp_path):
    session, run = AnytimeSession(bundle), open_run(bundle.parents[1] / "run")
    rules = session.manifest.preprocessing
    assert rules.tokenizer is not None and not (bundle / "manifest.json").read_text().count("merges")
    for text, expected in ((review(300), "up"), (review(301), "down")):
        x = from_text(text, rules)
        logits = session.run_to(2, x).logits
        with torch.no_grad():
            assert np.abs(logits - run.network.sub_model(2).eval()(torch.from_numpy(x)).numpy()).max() < 1e-4
        assert session.manifest.classes[logits.argmax()] == expected
    (tmp_path / "b.txt").write_text("a sad film\n")
    np.save(tmp_path / "a.npy", from_text("a sad film", rules)[0])
    one, other = (next(read(file, session.manifest)).x for file in files_of(str(tmp_path), session.manifest))
    assert np.array_equal(one, other)
    with pytest.raises(InputError, match="whole numbers of tokens, got float64"):
        np.save(tmp_path / "a.npy", np.zeros(one.shape[1]))
        next(read(str(tmp_path / "a.npy"), session.manifest))


def test_a_server_answers_texts_of_any_length(bundle):
    with Server(bundle.parent) as server:

        def ask(*data):
            tensor = {"name": "input", "datatype": "BYTES", "shape": [len(data)], "data": data}
            classes = {"name": "probabilities", "parameters": {"classification": 1}}
            body = json.dumps({"inputs": [tensor], "outputs": [classes]}).encode()
            request = urllib.request.Request(f"{server.address}/v2/models/reviews/infer", body)
            with urllib.request.urlopen(request) as answer:
                return [each.rpartition(":")[2] for each in json.load(answer)["outputs"][0]["data"]]

        assert ask(review(300), review(301) + " " + review(303)) == ["up", "down"]
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(7)


def test_a_run_keeps_its_tokenizer(bundle):
    run = open_run(bundle.parents[1] / "run")
    assert run.recipe.data.tokenizer == str((run.path / "data" / "tokenizer.json").resolve())
    assert datasets.from_recipe(run.recipe).facts == run.facts


def test_half_a_character_is_no_text(bundle, tmp_path):
    with pytest.raises(InputError, match="a text in UTF-8, got other bytes"):
        from_text("caf\udcff", AnytimeSession(bundle).manifest.preprocessing)
    (tmp_path / "mine.py").write_text("def make(): return {'train': [('caf' + chr(0xDCFF), 0), ('tea', 1)] * 9}\n")
    with pytest.raises(DataError, match="a text in row 0 of the train part"):
        datasets.load(DataRecipe(name=f"{tmp_path}/mine.py:make"))


def test_another_tokenizer_is_refused_by_run_and_bundle(bundle, reviews, tmp_path):
    run = open_run(bundle.parents[1] / "run")
    other = load(reviews, tokens=run.facts.input_shape[0])
    changed = other.facts.tokenizer.replace('"[PAD]"', '"[pad]"')
    with pytest.raises(DataError, match=r"with a tokenizer .* got a tokenizer"):
        expect_same_data(run.path, run.facts, replace(other.facts, tokenizer=changed, counts=run.facts.counts))
    file = bundle / "tokenizer.json"
    content = file.read_bytes()
    try:
        file.write_bytes(content.replace(b"good", b"bood"))
        with pytest.raises(BundleError, match=r"tokenizer.json' is truncated or altered"):
            AnytimeSession(bundle)
    finally:
        file.write_bytes(content)
