"""A recipe: every value that a training run depends on, checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DataName = Literal["digits", "pydoc", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagefolder", "text"]
MethodName = Literal["lct", "bp", "joint", "posthoc", "alone", "dni", "admm", "gpipe", "1f1b"]
PIPELINES: frozenset[str] = frozenset({"gpipe", "1f1b"})
WITH_EXITS: frozenset[str] = frozenset({"lct", "joint", "posthoc"})  # every layer group ends in an exit
CUTS: frozenset[str] = frozenset({*WITH_EXITS, *PIPELINES, "alone", "dni"})
TEXT: frozenset[str] = frozenset({"pydoc", "text"})
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """One table of the file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(Section):
    name: DataName = "digits"
    root: str | None = None
    path: str | None = None
    download: bool = False
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    augment: Literal["auto", "none", "flip", "crop", "crop-flip", "imagenet"] = "auto"
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
    """`groups` placed `by` what, or after the named `places`, or exits at `shares` of the main network's cost."""

    groups: Count = 4
    by: Literal["layers", "balanced", "measured", "memory"] = "layers"
    places: tuple[str, ...] = ()
    shares: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = ()

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
    kind: Literal["slim", "residual", "paper", "paper-imagenet"] = "slim"
    depth: Count | tuple[Count, ...] | None = None


class RuleRecipe(Section):
    """How critics learn (lct.Rule): the form of (5), its l, what they minimise, and the weight of L_i when mixed."""

    form: Literal["per-sample", "scalar"] = "per-sample"
    matching: Literal["l1", "l2", "smooth-l1"] = "l1"
    critic_loss: Literal["paper", "mixed", "cross-entropy"] = "paper"
    cross_entropy: NotNegative = 1.0


class DNIRecipe(Section):
    """Synthetic gradients: what their networks see beside h, their width, and the scale of what they predict."""

    labels: bool = True
    width: Count = 128
    scale: Positive = 10.0


class ADMMRecipe(Section):
    """Penalties of Taylor et al. (2016): `beta` on z = W a, `gamma` on a = h(z); sweeps before multipliers move."""

    beta: Positive = 1.0
    gamma: Positive = 100.0
    warmup: Annotated[int, Field(ge=0)] = 60


class PostHocRecipe(Section):
    """What critics minimise behind a frozen main network.

    Their own cross-entropy, (5) as `rule` has it (paper, mixed), or the divergence from the main network's output
    (distillation; Hinton et al., 2015), both softened by `temperature`.
    """

    loss: Literal["cross-entropy", "paper", "mixed", "distillation"] = "cross-entropy"
    temperature: Positive = 1.0


class OptimizerRecipe(Section):
    name: Literal["sgd", "adam", "adamw"]
    lr: Positive
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 0.0


class ScheduleRecipe(Section):
    """Learning rate over the run; milestones are shares of it, warm-up is counted in epochs."""

    name: Literal["constant", "step", "cosine", "one-cycle"] = "constant"
    milestones: tuple[Fraction, ...] = ()
    gamma: Positive = 0.1
    warmup: NotNegative = 0.0


class TrainRecipe(Section):
    method: MethodName = "lct"
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
    wire: Literal["exact", "bf16"] = "exact"
    sync_batch_norm: bool = False
    microbatches: Count = 4
    keep: Literal["last", "best"] = "last"
    checkpoint_minutes: Positive = 10.0

    @model_validator(mode="after")
    def _fit_the_method(self) -> TrainRecipe:
        if (self.method == "alone") != (self.exit is not None):
            raise ValueError("method alone, and no other, needs exit = 1, 2 .., the sub-network that it trains")
        if self.method == "posthoc" and self.weights is None:
            raise ValueError("method posthoc needs weights, the run folder or file whose main network it freezes")
        if self.track_descent and self.method != "lct":
            raise ValueError(
                f"track_descent compares local critic training with backprop; method {self.method} has none"
            )
        return self


class Recipe(Section):
    """A whole run. `groups` and `critics` are the two optimizers, each with its schedule."""

    data: DataRecipe
    model: ModelRecipe
    cut: CutRecipe
    critic: CriticRecipe
    rule: RuleRecipe
    dni: DNIRecipe
    admm: ADMMRecipe
    posthoc: PostHocRecipe
    train: TrainRecipe
    groups: OptimizerRecipe
    groups_schedule: ScheduleRecipe
    critics: OptimizerRecipe
    critics_schedule: ScheduleRecipe

    @model_validator(mode="after")
    def _fit_the_data(self) -> Recipe:
        if self.train.method in ("dni", "admm") and self.data.name in TEXT:
            raise ValueError(f"method {self.train.method} learns images alone, as in the paper; leave it out for text")
        if self.train.method == "admm" and self.data.augment != "none":
            raise ValueError("method admm needs data.augment = none, the same samples in every sweep")
        return self
