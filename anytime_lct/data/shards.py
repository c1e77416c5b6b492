"""Shards of WebDataset, tar files on this machine: wds:photos-{000..007}.tar (extra `webdataset`).

    photos-000.tar: a.jpg  a.cls  b.jpg  b.cls  ..    members of a sample are neighbours and share a key, "a"

A shard is of the test or the validation part where a word of its path says so, and else of the training part. Tar files
are read through once for the places of their members; images are then read one by one, in the order of the seed, and
give the same minibatches as a folder of the same files.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from anytime_lct.data.batches import ImageSource
from anytime_lct.data.labels import numbered
from anytime_lct.data.locations import located, missing, path_of
from anytime_lct.data.pictures import PART_NAMES, PicturePart, Pictures
from anytime_lct.errors import DataError
from anytime_lct.pixels import EXTENSIONS
from anytime_lct.recipes.recipe import DataRecipe

PARTS = {name: part for part, names in PART_NAMES.items() for name in names}
LABELS = ("cls", "label", "class", "target")  # an extension, or a key of a sample's JSON
CLASSES = "classes.txt"


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image file in a tar file."""

    tar: str
    name: str
    start: int
    size: int


@dataclass(frozen=True)
class TarMembers:
    """Image files in tar files, by number."""

    members: list[TarMember]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int, /) -> ImageSource:
        member = self.members[index]
        with Path(member.tar).open("rb") as file:
            file.seek(member.start)
            return f"{member.tar}:{member.name}", file.read(member.size)


def pictures(recipe: DataRecipe, root: Path) -> Pictures:
    """List the images of the shards and their classes; raises DataError, and ModuleNotFoundError without the library.

    Classes by number are named by the lines of classes.txt beside the first shard, if it is there.
    """
    shards = _shards(located(recipe, root.absolute()))
    members, labels = dict[str, list[TarMember]](), dict[str, list[Any]]()
    for path, part in shards.items():
        for member, label in _samples(path, recipe.input_column, recipe.label_column, path.stat().st_mtime_ns):
            members.setdefault(part, []).append(member)
            labels.setdefault(part, []).append(label)
    if "train" not in members:
        others = f"shards of the {' and '.join(members)} part alone" if members else "none"
        raise DataError(f"Expected samples for training in '{recipe.name}', got {others}; name more shards.")
    names = next(iter(shards)).parent / CLASSES
    classes = names.read_text("utf-8").splitlines() if names.is_file() else []
    classes, numbers = numbered(labels, [line.strip() for line in classes if line.strip()], recipe.name)
    parts = {part: PicturePart(TarMembers(each), numbers[part]) for part, each in members.items()}
    return Pictures(classes, parts["train"], parts.get("validation"), parts.get("test"))


def _shards(recipe: DataRecipe) -> dict[Path, str]:
    """Return the tar files that a located recipe names, and the part that each belongs to; raises DataError."""
    from webdataset.shardlists import expand_urls

    root, paths = Path(recipe.root or ""), dict[Path, str]()
    for pattern in expand_urls(path_of(recipe.name)):
        whole = root / pattern
        if whole.is_dir():
            some, start = sorted(whole.rglob("*.tar")), whole
        else:
            some, start = [whole] if whole.is_file() else sorted(root.glob(pattern)), root
        if not some:
            raise missing(whole, "name shards by a pattern, such as wds:photos-{000..007}.tar")
        for path in some:
            words = re.split("[^a-z]+", path.relative_to(start).as_posix().lower())
            paths[path] = next((PARTS[word] for word in words if word in PARTS), "train")
    return paths


@lru_cache(maxsize=4096)
def _samples(tar: Path, image: str | None, label: str | None, changed: int) -> list[tuple[TarMember, Any]]:
    """Return the image and the label of every sample of a tar file that was last changed then; raises DataError."""
    from webdataset.tariterators import base_plus_ext

    samples, key = list[tuple[TarMember, Any]](), None
    images, texts = dict[str, TarMember](), dict[str, bytes]()
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in chain(archive, [None]):
                base, extension = base_plus_ext(member.name) if member else (None, None)
                if member and (base is None or not member.isreg()):
                    continue
                if base != key:
                    if key is not None:
                        samples.append(_sample(f"{tar}:{key}", images, texts, image, label))
                    key, images, texts = base, {}, {}
                if member is None:
                    break
                extension = str(extension).lower()
                if extension in images.keys() | texts.keys():
                    raise DataError(f"Expected one file of a name in '{tar}', got two '{member.name}'; remove one.")
                if f".{extension}".endswith(EXTENSIONS):
                    images[extension] = TarMember(str(tar), member.name, member.offset_data, member.size)
                elif (extension in (*LABELS, label, "json")) and (file := archive.extractfile(member)):
                    texts[extension] = file.read()
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"Expected an uncompressed tar file, whole, as '{tar}', got one that cannot be read ({error}); make it "
            f"again."
        ) from None
    return samples


def _sample(
    name: str, images: dict[str, TarMember], texts: dict[str, bytes], image: str | None, label: str | None
) -> tuple[TarMember, Any]:
    """Return the image and the label of a sample: those of the recipe, or the only image and a usual label."""
    if image not in images and (image or len(images) != 1):
        expected = f"an image '{image}'" if image else "one image"
        raise DataError(
            f"Expected {expected} in the sample '{name}', got {', '.join(images) or 'none'}; name its extension with "
            f"--set data.input_column=NAME."
        )
    values = dict[str, Any]()
    if "json" in texts:
        try:
            content = json.loads(texts["json"])
        except ValueError:
            raise DataError(f"Expected JSON in '{name}.json', got something else; correct it.") from None
        values = content if isinstance(content, dict) else {}
    for extension, text in texts.items():
        if extension != "json":
            values[extension] = _number_or_name(text)
    key = next((each for each in ([label] if label else LABELS) if each in values), None)
    if key is None:
        raise DataError(
            f"Expected a label in the sample '{name}', as {label or 'cls'} or in its JSON, got "
            f"{', '.join((*texts, *values)) or 'none'}; name its extension or key with --set data.label_column=NAME."
        )
    return images[image] if image else next(iter(images.values())), values[key]


def _number_or_name(text: bytes) -> int | str:
    word = text.decode("utf-8", "replace").strip()
    return int(word) if word.isdecimal() else word
