"""Facts of data sets without their files: enough to build and count a network that is not trained."""

from __future__ import annotations

from anytime_lct.errors import RecipeError
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.task import Facts

SHAPES: dict[str, tuple[tuple[int, int, int], int]] = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}
SYMBOLS = 50  # of the Penn Treebank, by Table X


def facts_of(recipe: Recipe) -> Facts:
    """Return the facts of a recipe's data by name: an image folder with `image_size` is ImageNet, else CIFAR-10."""
    name = recipe.data.name
    if name == "text":
        symbols = tuple(chr(33 + k) for k in range(SYMBOLS))
        return Facts(name, "language-model", (recipe.data.sequence_length,), SYMBOLS, symbols)
    if name == "imagefolder":
        size = recipe.data.image_size
        sides = (size, size) if isinstance(size, int) else size
        shape, classes = ((3, *sides), 1000) if sides else ((3, 32, 32), 10)
    elif name in SHAPES:
        shape, classes = SHAPES[name]
    else:
        raise RecipeError(f"Expected one of {', '.join(SHAPES)}, imagefolder or text, got the data set '{name}'.")
    return Facts(name, "classification", shape, classes, tuple(map(str, range(classes))))
