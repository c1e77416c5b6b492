"""A recipe: every value that a training run depends on, checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anytime_lct.errors import RecipeError
from anytime_lct.recipes.choices import (
    Augment,
    Count,
    CriticKind,
    CriticLoss,
    ExitBudget,
    Form,
    Fraction,
    LogName,
    Matching,
    NotNegative,
    OptimizerName,
    Policy,
    Positive,
    ScheduleName,
    Strategy,
    Wire,
)
from anytime_lct.recipes.sentences import sentence

TEXT: frozenset[str] = frozenset({"pydoc", "text"})  # data sets on text; any other has images
DEFAULT_GROUPS = 4  # where a network has places for as many


class Section(BaseModel):
    """One table of the file; unknown keys are rejected. The text below a field is its line in the recipe reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


SectionT = TypeVar("SectionT", bound=Section)


class DataRecipe(Section):
    """The data set by name, where it is stored, and how it is made into minibatches (`data.datasets.load`)."""

    name: str = "digits"
    """The data set."""
    root: str | None = None
    """Folder that holds the data set; by default that of ANYTIME_LCT_DATA, or ./.data, or that of a factory's file."""
    input_column: str | None = None
    """Column of the samples of hf:PATH, or extension of the images of wds:SHARDS; by default a usual one."""
    label_column: str | None = None
    """Column of the labels of hf:PATH, or extension or JSON key of those of wds:SHARDS; by default a usual one."""
    inputs: Literal["auto", "images", "arrays"] = "auto"
    """What samples of npz:FILE or of a factory are; auto: images are Pillow's, uint8, or floats (C, H, W)."""
    path: str | None = None
    """File or folder of a text, relative to `root` where there is one."""
    encoding: str | None = None
    """Encoding of a text that is not UTF-8 and has no byte-order mark."""
    download: bool = False
    """Download the data set where it is missing."""
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the training data that is held out for validation, where it has no part of its own."""
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the images that is held out for the test, where they have no test part."""
    augment: Literal["auto", Augment] = "auto"
    """Random changes of training images; auto: what suits the data set."""
    policy: Policy = "none"
    """Random changes of colours and geometry after `augment`: torchvision's policy of this name."""
    erase: Fraction = 0.0
    """Share of the training images that lose a random box, which gets the mean colour."""
    mixup: NotNegative = 0.0
    """Blend training images, and labels, in pairs, by shares of Beta(mixup, mixup), such as 0.2; 0 never does."""
    cutmix: NotNegative = 0.0
    """Give training images a box of another one, and a share of its label, of Beta(cutmix, cutmix); 0 never does."""
    skip_unreadable: Annotated[int, Field(ge=0)] = 0
    """Most image files that may be left out as they cannot be read; above 0 all are read at the start."""
    image_size: Count | tuple[Count, Count] | None = None
    """Side, or height and width, of image files; by default one that suits them."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, subtracted from pixels in [0, 1]; by default the data set's own."""
    std: tuple[Annotated[float, Field(gt=0.0)], ...] | None = None
    """Standard deviation of each channel, by which pixels are divided; by default the data set's own."""
    batch_size: Count | None = None
    """Samples of a minibatch; by default 128, or 64 or 32 where an epoch would have fewer than 50 steps."""
    sequence_length: Count = 150
    """Characters of a training sequence of a text."""
    tokens: Count | None = None
    """Tokens of a text that has a label; by default as many as 95 of 100 texts have, and at most 256."""
    tokenizer: str | None = None
    """File tokenizer.json of the library tokenizers for such texts; by default one is made from them."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read image files; 0 reads them in the training process. By default 0, for a GPU up to 8."""

    @property
    def changes(self) -> tuple[str, ...]:
        """The keys, beside `augment`, by which training images change at random."""
        return tuple(key for key in ("policy", "erase", "mixup", "cutmix") if getattr(self, key) not in ("none", 0.0))


class ModelRecipe(Section):
    """The network by name; every other key of the table is an option of that network."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    """The network; every other key of the table is an option of it."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class CutRecipe(Section):
    """Where a network is cut: for exits at `shares` of its cost, after named `places`, or by a strategy.

    A share is a number below 1, of the main network's multiply-adds; a larger number is multiply-adds. Shares beside
    places size the critics there.

    >>> CutRecipe(shares=(0.4, 0.7)).groups
    3
    """

    groups: Count | None = None
    """Number of layer groups N; by default that of `places` or `shares`, else 4, or what the network has."""
    by: Strategy = "shares"
    """Exits at even shares of the cost, or groups alike in layers, multiply-adds (balanced), seconds or memory."""
    places: tuple[str, ...] = ()
    """Names of modules after which to cut, instead of a strategy."""
    shares: tuple[ExitBudget, ...] = ()
    """Budgets of the exits, as shares of the main network's multiply-adds, or as multiply-adds; by default even."""
    spread: Literal["balanced", "measured", "memory"] | None = None
    """What is balanced between workers; by default as `by`, or multiply-adds where that is layers or shares."""

    def targets(self, groups: int) -> tuple[float, ...]:
        """Return the share of each exit before the main network's own, () where exits have none.

        >>> CutRecipe().targets(4)
        (0.25, 0.5, 0.75)
        """
        if self.shares or self.by != "shares" or self.places:
            return self.shares
        return tuple(number / groups for number in range(1, groups))

    @model_validator(mode="before")
    @classmethod
    def _count_groups(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        table = cast("dict[str, Any]", value)
        cuts = table.get("places") or table.get("shares") or ()
        num_cuts = len(cast("list[Any]", cuts)) if isinstance(cuts, list | tuple) else 0
        return {**table, "groups": num_cuts + 1} if num_cuts and table.get("groups") is None else table

    @model_validator(mode="after")
    def _check_cuts(self) -> CutRecipe:
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

    Residual critics on maps have a budget: where exits have shares, what the groups before the cut leave of it, and
    otherwise `budget`. `share` decides where to cut then: for a part of the exit's cost that its critic takes.
    """

    kind: CriticKind | None = None
    """Architecture of the critics; by default the network's own where it brings exits, and else residual."""
    depth: Count | tuple[Count, ...] | None = None
    """Layers of a critic: one number for all, or one for each; by default what suits its kind and its input."""
    budget: Annotated[float, Field(gt=0.0, le=1.0)] = 1 / 3
    """Largest cost of a residual critic on maps, as a share of that of the groups behind its cut, without shares."""
    share: Fraction = 0.6
    """Part of an exit's cost that its critic takes, about, where exits have shares."""


class RuleRecipe(Section):
    """How critics learn (lct.Rule): the form of (5), its l, the loss they minimise, and the weight of L_i if mixed."""

    form: Form = "per-sample"
    """Equation (5) for each sample, or for the mean loss of a minibatch (scalar)."""
    matching: Matching = "l1"
    """The distance l of (5), between the loss of a critic and that of the next one."""
    critic_loss: CriticLoss = "paper"
    """What critics minimise: (5) (paper), (5) plus their own loss (mixed), or their own loss (cross-entropy)."""
    cross_entropy: NotNegative = 1.0
    """Weight of their own loss where `critic_loss` is mixed."""


class OptimizerRecipe(Section):
    """An optimizer and its rate before the schedule; what is None follows from the network (`fitting.fit`)."""

    name: OptimizerName | None = None
    """The optimizer; by default what suits the network, for critics that of the groups."""
    lr: Positive | None = None
    """Learning rate, before the schedule; by default what suits the network and the minibatch."""
    momentum: Fraction = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's momentum, with sgd."""
    weight_decay: NotNegative | None = None
    """Weight decay; by default what suits the optimizer."""


class ScheduleRecipe(Section):
    """The learning rate over the run; milestones are shares of the run, warm-up is in epochs."""

    name: ScheduleName = "constant"
    """How the learning rate changes over the run."""
    milestones: tuple[Fraction, ...] = ()
    """Shares of the run after which a step schedule multiplies the rate by `gamma`."""
    gamma: Positive = 0.1
    """Factor of the rate at a milestone."""
    warmup: NotNegative = 0.0
    """Epochs over which the rate rises from zero."""


class TrainRecipe(Section):
    """The run: its method by name, its length, its precision, device and checkpoints.

    What is None follows from the network (`fitting.fit`) or the device (`training.prepare.suit_device`).
    """

    method: str = "lct"
    """Training method."""
    exit: Count | None = None
    """Sub-network that the method alone trains."""
    weights: str | None = None
    """Weights to start from: a file, a run folder, or default for torchvision's or timm's own."""
    track_descent: Annotated[int, Field(ge=0)] = 0
    """Measure sufficient descent (16) once in this many minibatches; 0 never does."""
    epochs: Count
    """Passes over the training data."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of weights, data order and validation split."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the label that is spread over all classes."""
    class_weights: Literal["none", "balanced"] | tuple[Positive, ...] = "none"
    """Weights of the classes in the loss: none, balanced, which makes them count alike, or one for each of them."""
    accumulate: Count = 1
    """Minibatches whose gradients a step of the optimizers takes together, as those of one large minibatch."""
    clip_norm: NotNegative | None = None
    """Largest norm of a group's gradient; larger ones are scaled to it; 0 never does; by default what suits."""
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay of the moving average of weights that the run keeps, such as 0.999; 0 keeps the weights themselves."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Number format of activations; weights stay float32. By default bfloat16 on a GPU that has it, else float32."""
    channels_last: bool | None = None
    """Memory layout of convolutions; often faster. By default on a GPU that has bfloat16."""
    compile: bool = False
    """Compile groups by torch.compile, and critics unless their rule runs backward twice."""
    device: str = "auto"
    """Device of torch, such as cpu or cuda:1; auto takes a GPU where there is one."""
    wire: Wire = "exact"
    """Number format between workers; bf16 halves the bytes and rounds."""
    sync_batch_norm: bool = False
    """Batch norm over the minibatch of all replicas."""
    microbatches: Count = 4
    """Parts of a minibatch in the pipelines gpipe and 1f1b."""
    keep: Literal["last", "best"] = "last"
    """Which weights the run keeps: of the last epoch, or of the best on validation."""
    keep_optimizer: bool = False
    """Keep the state of the optimizers when the run is finished."""
    checkpoint_minutes: Positive = 10.0
    """Minutes between checkpoints within an epoch."""
    log: tuple[LogName, ...] = ("tensorboard",)
    """Loggers of losses, learning rates and speed; mlflow and wandb need the extras of these names."""


class Recipe(Section):
    """A whole run. `groups` and `critics` are the two optimizers, each with its schedule.

    Any other table holds the options of a training method, which `training.methods.table` checks and `section` reads.
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
        try:
            return kind.model_validate((self.model_extra or {}).get(name, {}))
        except ValidationError as error:
            raise RecipeError(sentence(error, kind, name)) from None
