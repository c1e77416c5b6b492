"""Tables of images that the library `datasets` reads on this machine: hf:PATH, a folder or a file (extra `datasets`).

    PATH/train-00000.parquet   test-00000.parquet    Parquet, Arrow, CSV or JSON lines, splits by their names
    PATH/dataset_dict.json     train/  test/         what save_to_disk wrote
    PATH/train/cat/1.jpg       test/cat/7.jpg        a folder of images

Nothing is downloaded. Image files stay encoded until they are read as those of any folder are, so that a table of the
files of a folder gives the same minibatches.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytime_lct.data.batches import ImageSource
from anytime_lct.data.labels import numbered
from anytime_lct.data.locations import missing, path_of
from anytime_lct.data.pictures import PART_NAMES, PicturePart, Pictures
from anytime_lct.errors import DataError
from anytime_lct.recipes.recipe import DataRecipe

OPENERS = {
    ".parquet": "from_parquet", ".arrow": "from_file", ".csv": "from_csv", ".json": "from_json", ".jsonl": "from_json",
}  # fmt: skip
IMAGES, LABELS = ("image", "img", "jpg", "png"), ("label", "labels", "class", "cls", "target", "fine_label")
GET = "get it first, for example by: hf download --repo-type dataset OWNER/NAME --local-dir FOLDER"
URL = re.compile(r"^\s*(- *)?(path:)?\s*(- *)?[\"']?\w+://", re.MULTILINE)  # among the files of a split


@dataclass(frozen=True)
class Column:
    """The image files in a column of a table: in the table itself, or by paths relative to its folder."""

    table: Any
    name: str
    folder: Path
    part: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int, /) -> ImageSource:
        cell = self.table[index][self.name]
        if cell is not None and cell["bytes"] is not None:
            return f"row {index} of the {self.part}", cell["bytes"]
        if cell is None or cell["path"] is None:
            raise DataError(f"Expected an image in row {index} of the {self.part}, got none; remove the row.")
        return str(self.folder / cell["path"])


def pictures(recipe: DataRecipe, root: Path) -> Pictures:
    """List the images of a table and their classes; raises DataError, and ModuleNotFoundError without the library."""
    name, path = recipe.name, _path(recipe, root)
    folder = path if path.is_dir() else path.parent
    columns, labels, classes = dict[str, Column](), dict[str, list[Any]](), ()
    for part, table in splits(recipe, root).items():
        image, label, names = _columns(recipe, table)
        classes = names if part == "train" else classes
        columns[part] = Column(_encoded(table, image), image, folder, f"{part} part of '{name}'")
        labels[part] = list(table[label])
    classes, numbers = numbered(labels, classes, name)
    by_name = {part: PicturePart(column, numbers[part]) for part, column in columns.items()}
    return Pictures(classes, by_name["train"], by_name.get("validation"), by_name.get("test"))


def _path(recipe: DataRecipe, root: Path) -> Path:
    return root / Path(path_of(recipe.name)).expanduser()


def splits(recipe: DataRecipe, root: Path) -> dict[str, Any]:
    """Open the tables of hf:PATH, of each part that is there; raises DataError."""
    import datasets

    name, path = recipe.name, _path(recipe, root)
    if not path.exists():
        raise missing(path.absolute(), GET)
    card = path / "README.md"
    if card.is_file() and URL.search(card.read_text("utf-8", "replace").partition("data_files:")[2].split("\n---")[0]):
        raise DataError(f"Expected files on this machine in '{card}', got an address; {GET}.")
    try:
        with _quiet(datasets):
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                tables = datasets.load_from_disk(path)
            elif path.is_dir():
                tables = datasets.load_dataset(str(path.absolute()))
            elif path.suffix in OPENERS:  # not by load_dataset, which counts its use over the network
                tables = getattr(datasets.Dataset, OPENERS[path.suffix])(str(path.absolute()))
            else:
                raise DataError(f"Expected a folder, or a file {', '.join(OPENERS)}, as '{name}', got another kind.")
    except (DataError, ModuleNotFoundError):
        raise
    except Exception as error:  # of pyarrow, pandas and fsspec too
        reason = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise DataError(f"The data set '{name}' in '{path.absolute()}' cannot be read: {reason}.") from error
    by_split: dict[Any, Any] = tables if isinstance(tables, dict) else {"train": tables}
    parts = dict[str, Any]()
    for part, names in PART_NAMES.items():
        if split := next((each for each in names if len(by_split.get(each, ()))), None):
            parts[part] = by_split[split]
    if "train" not in parts:
        raise DataError(
            f"Expected a split 'train', and perhaps 'validation' and 'test', in '{name}', got "
            f"{', '.join(map(str, by_split)) or 'none'}; rename one."
        )
    return parts


def _columns(recipe: DataRecipe, table: Any) -> tuple[str, str, tuple[str, ...]]:
    """Return the names of the columns of images and of labels, and those of the classes, () where it has none."""
    import datasets

    kinds = kinds_of(table)
    values = [column for column, kind in kinds.items() if kind not in ("image", "classes", "list")]
    pictured = [column for column, kind in kinds.items() if kind == "image"]
    pictured = [column for column in pictured if isinstance(table.features[column], datasets.Image)] or pictured
    image = chosen(recipe.name, "image", recipe.input_column, [pictured, values], IMAGES, table)
    classed = [column for column, kind in kinds.items() if kind == "classes"]
    simple = [
        column for column in values if kinds[column] == "bool" or "int" in kinds[column] or "string" in kinds[column]
    ]
    rest = [column for column in simple if column != image]
    label = chosen(recipe.name, "label", recipe.label_column, [classed, rest], LABELS, table)
    return image, label, tuple(table.features[label].names) if label in classed else ()


def kinds_of(table: Any) -> dict[str, str]:
    """Return the kind of every column: image, classes, list, or the type of its values, as int64 and string."""
    import datasets

    def kind(feature: Any) -> str:
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()):
            return "image"
        if isinstance(feature, datasets.Value):
            return "image" if feature.dtype.endswith("binary") else feature.dtype
        return "classes" if isinstance(feature, datasets.ClassLabel) else "list"

    return {column: kind(feature) for column, feature in table.features.items()}


def chosen(
    name: str, what: str, column: str | None, candidates: list[list[str]], usual: Sequence[str], table: Any
) -> str:
    """Return the recipe's column, or of the likelier candidates the only one, or one with a usual name."""
    if column in table.features:
        return column or ""
    for likely in [] if column else candidates:
        if len(likely) == 1 or (named := [each for each in usual if each in likely]):
            return likely[0] if len(likely) == 1 else named[0]
    key = "label_column" if what == "label" else "input_column"
    expected = f"the column '{column}'" if column else f"one column of {what}s"
    raise DataError(
        f"Expected {expected} in '{name}', got {', '.join(table.features)}; name it with --set data.{key}=NAME."
    )


def _encoded(table: Any, image: str) -> Any:
    """Return the column of images alone, whose cells are bytes and paths."""
    import datasets

    kind, column = table.features[image], table.select_columns(image)
    if isinstance(kind, dict):
        return column
    return column.cast_column(image, datasets.Image(decode=False))


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Hide what the library logs, as errors are raised, and its bars where nobody watches them."""
    hides = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL + 1)
    if hides:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if hides:
            datasets.enable_progress_bars()
