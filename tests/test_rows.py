"""Tables without images: columns of numbers and of lists become arrays, and what does not is one sentence."""

from __future__ import annotations

import pytest
import torch

from anytime_lct.data import datasets
from anytime_lct.errors import DataError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import DataRecipe

library = pytest.importorskip("datasets")


def load(path, **keys):
    return datasets.load(DataRecipe(name=f"hf:{path}", batch_size=8, **keys))


@pytest.fixture
def flowers(tmp_path):
    lines = ["Id,length,petals,colour,species"]
    lines += [f"{k},{k / 7},{k % 3},red,{['setosa', 'virginica'][k % 2]}" for k in range(40)]
    (tmp_path / "flowers.csv").write_text("\n".join(lines))
    return tmp_path / "flowers.csv"


def test_columns_of_numbers_are_vectors_and_numbers_of_rows_are_left_out(flowers):
    data = load(flowers)
    assert (data.facts.input_shape, data.facts.classes) == ((2,), ("setosa", "virginica"))
    assert data.notes[0] == "Samples are the columns length, petals, labels species; left out: Id, colour."
    rows = torch.cat([data.facts.raw(x) for x, _ in data.batches("train")])
    assert {round(7 * float(length)) % 3 for length, petals in rows if petals.round() == 2} == {2}
    recipe = reading.complete({"data": {"name": f"hf:{flowers}"}})
    assert recipe.model.name == "auto" and datasets.sized(recipe) == recipe


def test_a_column_of_floats_that_is_named_is_the_target(flowers):
    data = load(flowers, label_column="length")
    assert data.facts.task == "regression" and data.facts.input_shape == (1,)


def test_whole_numbers_that_differ_in_most_rows_are_amounts(tmp_path):
    rows = {"rooms": [float(k % 5) for k in range(60)], "price": [1000 + 7 * k for k in range(60)]}
    library.Dataset.from_dict(rows).to_parquet(tmp_path / "houses.parquet")
    facts = load(tmp_path / "houses.parquet", label_column="price").facts
    assert (facts.task, facts.classes) == ("regression", ("price",))


def test_lists_of_whole_numbers_are_tokens(tmp_path):
    columns = {"text": ["a"] * 20, "input_ids": [[k, 5, 7] for k in range(20)], "label": [0, 1] * 10}
    library.Dataset.from_dict(columns).save_to_disk(tmp_path / "tokens")
    data = load(tmp_path / "tokens")
    assert (data.facts.input_shape, data.facts.tokens, data.facts.inputs) == ((3,), 20, "array")
    assert all(
        x.dtype == torch.int64 and bool((x[:, 1:] == torch.tensor([5, 7])).all()) for x, _ in data.batches("train")
    )


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"first": ["a", "b"], "second": ["c", "d"], "label": [0, 1]},
            "one column of images, of texts|of lists of numbers, or columns.*got first, second; name one",
        ),
        ({"input_ids": [[1, 2], [3]], "label": [0, 1]}, "one shape in every row of the train part.*pad sequences"),
        ({"width": [1.0, None], "label": [0, 1]}, "finite numbers, got NaN"),
        ({"width": [1.0, 2.0], "height": [3.0, 4.0]}, "one column of labels.*data.label_column=NAME"),
    ],
)
def test_what_is_no_array_is_one_sentence(tmp_path, columns, expected):
    library.Dataset.from_dict(columns).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(DataError, match=expected):
        load(tmp_path / "table.parquet")
