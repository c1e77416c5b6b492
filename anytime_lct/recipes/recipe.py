"""A recipe: every value that a training run depends on, checked."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from anytime_lct.errors import RecipeError

# Every closed choice has its type here, once.
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


def _not_percent(number: float) -> float:
    if 1 <= number <= 100:
        raise ValueError("shares are less than 1, like 0.4 for 40%, and multiply-adds more than 100")
    return number


ExitBudget = Annotated[Positive, AfterValidator(_not_percent)]


class Section(BaseModel):
    """One table of the file; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SectionT = TypeVar("SectionT", bound=Section)


class DataRecipe(Section):
    """The data set by name, where it is stored, and how it is made into minibatches (`data.datasets.load`)."""

    name: str = "digits"
    root: str | None = None
    path: str | None = None
    encoding: str | None = None
    download: bool = False
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    augment: Literal["auto", Augment] = "auto"
    image_size: Count | tuple[Count, Count] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0.0)], ...] | None = None
    batch_size: Count | None = None
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

    A share is a number below 1, of the main network's multiply-adds; a larger number is multiply-adds. Places and
    shares determine the number of groups. `spread` is the cost that is balanced between workers; by default
    that of `by`, or training cost where `by` is layers.

    >>> CutRecipe(shares=(0.4, 0.7)).groups
    3
    """

    groups: Count = 4
    by: Strategy = "layers"
    places: tuple[str, ...] = ()
    shares: tuple[ExitBudget, ...] = ()
    spread: Literal["balanced", "measured", "memory"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _count_groups(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "groups" in value:
            return cast(Any, value)
        table = cast("dict[str, Any]", value)
        cuts = table.get("places") or table.get("shares") or ()
        num_cuts = len(cast("list[Any]", cuts)) if isinstance(cuts, list | tuple) else 0
        return {**table, "groups": num_cuts + 1} if num_cuts else table

    @model_validator(mode="after")
    def _check_cuts(self) -> CutRecipe:
        if self.places and self.shares:
            raise ValueError("places and shares both say where to cut; leave one of them out")
        for kind in ([s for s in self.shares if s < 1], [s for s in self.shares if s > 1]):
            if kind != sorted(set(kind)):
                raise ValueError("shares rise from exit to exit, as in [0.2, 0.4, 0.7]")
        for key, cuts in (("places", self.places), ("shares", self.shares)):
            if cuts and self.groups != len(cuts) + 1:
                raise ValueError(
                    f"{len(cuts)} {key} make {len(cuts) + 1} groups, but groups = {self.groups}; leave one of them out"
                )
        return self


class CriticRecipe(Section):
    """The critics behind the cuts: their kind, and their depth, one for all or one for each.

    `budget` is the largest cost of a residual critic, as a share of the multiply-adds of the groups behind its cut.
    """

    kind: CriticKind = "residual"
    depth: Count | tuple[Count, ...] | None = None
    budget: Annotated[float, Field(gt=0.0, le=1.0)] = 1 / 3


class RuleRecipe(Section):
    """How critics learn (lct.Rule): the form of (5), its l, the loss they minimise, and the weight of L_i if mixed."""

    form: Form = "per-sample"
    matching: Matching = "l1"
    critic_loss: CriticLoss = "paper"
    cross_entropy: NotNegative = 1.0


class OptimizerRecipe(Section):
    """An optimizer and its rate before the schedule; what is None follows from the network (`fitting.fit`)."""

    name: OptimizerName | None = None
    lr: Positive | None = None
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NotNegative | None = None


class ScheduleRecipe(Section):
    """The learning rate over the run; milestones are shares of the run, warm-up is in epochs."""

    name: ScheduleName = "constant"
    milestones: tuple[Fraction, ...] = ()
    gamma: Positive = 0.1
    warmup: NotNegative = 0.0


class TrainRecipe(Section):
    """The run: its method by name, its length, its precision, device and checkpoints.

    A `clip_norm` of 0 does not clip; None follows from the network (`fitting.fit`).
    """

    method: str = "lct"
    exit: Count | None = None
    weights: str | None = None
    track_descent: Annotated[int, Field(ge=0)] = 0
    epochs: Count
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    clip_norm: NotNegative | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    device: str = "auto"
    wire: Wire = "exact"
    sync_batch_norm: bool = False
    microbatches: Count = 4
    keep: Literal["last", "best"] = "last"
    keep_optimizer: bool = False
    checkpoint_minutes: Positive = 10.0


class Recipe(Section):
    """A whole run. `groups` and `critics` are the two optimizers, each with its schedule.

    Any other table holds the options of a training method; `training.methods.table.checked` checks it, `section` reads
    it.
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
        """Return the table of a training method, completed; raises RecipeError naming the first wrong key."""
        table = (self.model_extra or {}).get(name, {})
        try:
            return kind.model_validate(table)
        except ValidationError as error:
            raise RecipeError(sentence(error, kind, name)) from None


def sentence(error: ValidationError, kind: type[BaseModel], *above: str) -> str:
    """Describe the first error of a table in a sentence: which key, what was expected, what came.

    `kind` is the model that was validated, `above` the names of the tables around it.
    """
    errors = error.errors()
    key = _keys(errors[0]["loc"])[:2]  # where it may have several types, the error of the type that came nearest
    first = max((entry for entry in errors if _keys(entry["loc"])[:2] == key), key=lambda entry: len(entry["loc"]))
    path = [*above, *_keys(first["loc"])]
    name = ".".join(path) or "the recipe"
    if first["type"] == "extra_forbidden":
        known = _keys_beside(kind, _keys(first["loc"]))
        near = difflib.get_close_matches(path[-1], known, n=3)
        return f"The recipe has an unknown key '{name}'; did you mean {' or '.join(near or known)}?"
    if first["type"] == "missing":
        return f"The recipe needs a value for '{name}'; set it in the file or with --set {name}=VALUE."
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # entries that contradict each other
        return f"The recipe contradicts itself: {reason}."
    return f"The recipe's '{name}' is {first['input']!r}: {reason[0].lower()}{reason[1:]}."


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of a pydantic location, without the types that it puts between them."""
    return [str(part) for part in location if isinstance(part, int) or not set(part) & set("-[")]


def _keys_beside(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path[:-1]:
        annotation = kind.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            kind = annotation
    return list(kind.model_fields)
