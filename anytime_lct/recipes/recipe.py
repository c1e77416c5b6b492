"""A recipe: every value that a training run depends on, checked."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anytime_lct.errors import RecipeError

# Every closed choice is typed here, once.
Augment = Literal["none", "flip", "crop", "crop-flip", "imagenet"]
Strategy = Literal["layers", "balanced", "measured", "memory"]
CriticKind = Literal["slim", "residual", "paper", "paper-imagenet"]
Form = Literal["per-sample", "scalar"]
Matching = Literal["l1", "l2", "smooth-l1"]
CriticLoss = Literal["paper", "mixed", "cross-entropy"]
OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "cosine", "one-cycle"]
Wire = Literal["exact", "bf16"]

TEXT: frozenset[str] = frozenset({"pydoc", "text"})  # data sets on text; any other has images
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """One table of the file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SectionT = TypeVar("SectionT", bound=Section)


class DataRecipe(Section):
    """The data set by name, where it lies, and how it becomes minibatches (`data.datasets.load`)."""

    name: str = "digits"
    root: str | None = None
    path: str | None = None
    download: bool = False
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    augment: Literal["auto", Augment] = "auto"
    image_size: Count | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0.0)], ...] | None = None
    batch_size: Count = 128
    sequence_length: Count = 150
    workers: Annotated[int, Field(ge=0)] = 0


class ModelRecipe(Section):
    """The network by name; every other key of the table is an option of that network."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class CutRecipe(Section):
    """Where a network is cut: into `groups` by a strategy, after named `places`, or for exits at `shares` of its cost.

    Places and shares say themselves how many groups there are. `spread` is what is evened out between workers; by
    default what `by` says, and training cost where that is layers.

    >>> CutRecipe(shares=(0.4, 0.7)).groups
    3
    """

    groups: Count = 4
    by: Strategy = "layers"
    places: tuple[str, ...] = ()
    shares: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = ()
    spread: Literal["balanced", "measured", "memory"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _count_groups(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "groups" in given:
            return cast(Any, given)
        table = cast("dict[str, Any]", given)
        cuts = table.get("places") or table.get("shares") or ()
        named = len(cast("list[Any]", cuts)) if isinstance(cuts, list | tuple) else 0
        return {**table, "groups": named + 1} if named else table

    @model_validator(mode="after")
    def _agree(self) -> CutRecipe:
        if self.places and self.shares:
            raise ValueError("places and shares both say where to cut; leave one of them out")
        if list(self.shares) != sorted(set(self.shares)):
            raise ValueError("shares rise from exit to exit, as in [0.2, 0.4, 0.7]")
        for what, cuts in (("places", self.places), ("shares", self.shares)):
            if cuts and self.groups != len(cuts) + 1:
                raise ValueError(
                    f"{len(cuts)} {what} make {len(cuts) + 1} groups, but groups = {self.groups}; leave one of them out"
                )
        return self


class CriticRecipe(Section):
    """What stands behind every cut: a kind of critic, and its depth, one for all or one for each."""

    kind: CriticKind = "slim"
    depth: Count | tuple[Count, ...] | None = None


class RuleRecipe(Section):
    """How critics learn (lct.Rule): the form of (5), its l, what they minimise, and the weight of L_i when mixed."""

    form: Form = "per-sample"
    matching: Matching = "l1"
    critic_loss: CriticLoss = "paper"
    cross_entropy: NotNegative = 1.0


class OptimizerRecipe(Section):
    """An optimizer and its rate, before the schedule."""

    name: OptimizerName
    lr: Positive
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 0.0


class ScheduleRecipe(Section):
    """Learning rate over the run; milestones are shares of it, warm-up is counted in epochs."""

    name: ScheduleName = "constant"
    milestones: tuple[Fraction, ...] = ()
    gamma: Positive = 0.1
    warmup: NotNegative = 0.0


class TrainRecipe(Section):
    """The run: its method by name, its length, and how it computes."""

    method: str = "lct"
    exit: Count | None = None
    weights: str | None = None
    track_descent: Annotated[int, Field(ge=0)] = 0
    epochs: Count
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    clip_norm: Positive | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    device: str = "auto"
    wire: Wire = "exact"
    sync_batch_norm: bool = False
    microbatches: Count = 4
    keep: Literal["last", "best"] = "last"
    checkpoint_minutes: Positive = 10.0


class Recipe(Section):
    """A whole run. `groups` and `critics` are the two optimizers, each with its schedule.

    Any other table is one that a training method brings; it is checked where methods are known
    (`training.methods.table.checked`), and read with `section`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    data: DataRecipe
    model: ModelRecipe
    cut: CutRecipe
    critic: CriticRecipe
    rule: RuleRecipe
    train: TrainRecipe
    groups: OptimizerRecipe
    groups_schedule: ScheduleRecipe
    critics: OptimizerRecipe
    critics_schedule: ScheduleRecipe

    def section(self, name: str, kind: type[SectionT]) -> SectionT:
        """Return a table that a training method brings, completed; raises RecipeError naming the first wrong key."""
        given = (self.model_extra or {}).get(name, {})
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            raise RecipeError(sentence(error, kind, name)) from None


def sentence(error: ValidationError, kind: type[BaseModel], *above: str) -> str:
    """Say the first thing that is wrong with a table: where, what was expected, what came.

    `kind` is what was validated, `above` the names of the tables around it.
    """
    errors = error.errors()
    wrong = _keys(errors[0]["loc"])[:2]  # of a key that takes several types, the type that came nearest
    first = max((each for each in errors if _keys(each["loc"])[:2] == wrong), key=lambda each: len(each["loc"]))
    path = [*above, *_keys(first["loc"])]
    where = ".".join(path) or "the recipe"
    if first["type"] == "extra_forbidden":
        known = _keys_beside(kind, _keys(first["loc"]))
        near = difflib.get_close_matches(path[-1], known, n=3)
        return f"The recipe has an unknown key '{where}'; did you mean {' or '.join(near or known)}?"
    if first["type"] == "missing":
        return f"The recipe needs a value for '{where}'; set it in the file or with --set {where}=VALUE."
    wanted = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # entries that do not go together
        return f"The recipe contradicts itself: {wanted}."
    return f"The recipe's '{where}' is {first['input']!r}: {wanted[0].lower()}{wanted[1:]}."


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """Name a place in a table by its keys alone: pydantic puts the types that a key may have in between."""
    return [str(part) for part in place if isinstance(part, int) or not set(part) & set("-[")]


def _keys_beside(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path[:-1]:
        annotation = kind.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            kind = annotation
    return list(kind.model_fields)
