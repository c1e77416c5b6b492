"""Export a trained network as a bundle: ONNX files of exits, layer groups and critics, compared with torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from anytime_lct import __version__
from anytime_lct.errors import ExportError
from anytime_lct.evaluation import Predictor
from anytime_lct.exits.bundle import ALL, Bundle, Contents, Manifest, describe_file, write_manifest
from anytime_lct.exits.profile import NAME as PROFILE
from anytime_lct.exits.profile import Latency, Profile
from anytime_lct.exits.thresholds import NAME as THRESHOLDS
from anytime_lct.exits.thresholds import ThresholdTable
from anytime_lct.export import parity
from anytime_lct.export.folder import new_folder, save
from anytime_lct.export.graphs import OPSET, Sheet, export_sheet
from anytime_lct.export.quantise import Int8, check, quantise
from anytime_lct.export.raw import preprocessing
from anytime_lct.export.single import NAME as SINGLE
from anytime_lct.export.single import single_file
from anytime_lct.export.unit import FromUnit, InUnit
from anytime_lct.modes import probing
from anytime_lct.network import LCTNetwork
from anytime_lct.runtime.parity import NAME as PARITY
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.stopwatch import machine, median_seconds
from anytime_lct.task import Facts


@dataclass(frozen=True)
class Trained:
    """What is exported: a network, the facts of its data, its profile and name, and its rules for stopping, if any."""

    network: LCTNetwork
    facts: Facts
    profile: Profile
    model_name: str
    thresholds: ThresholdTable | None = None


def write_bundle(
    trained: Trained,
    out: Path,
    contents: Contents = ALL,
    *,
    int8: Int8 | None = None,
    force: bool = False,
    progress: Callable[[str], object] | None = None,
) -> Bundle:
    """Write a bundle folder, and return it opened.

    It holds every exit whole, and layer groups and critics for resumable execution; `contents.only` omits one of the
    two. With `contents.single`, anytime.onnx has all exits in one graph too, with thresholds (export/single.py).
    Onnxruntime's logits are compared with torch's, and every exit is timed. Of the rules it takes those that visit
    exported exits only, and none without groups. With `int8` the graphs are quantised, and quality, temperatures and
    rules are measured on them. The folder gets its name when it is complete, or is not written at all; `force` replaces
    an existing bundle. Raises ExportError.

    >>> write_bundle(Trained(network, facts, profile, "resnet"), Path("bundle"))  # doctest: +SKIP
    """
    network, facts, profile, thresholds = trained.network, trained.facts, trained.profile, trained.thresholds
    report = progress or (lambda step: None)
    scope = _Scope.of(network, profile, contents)
    if scope.single and facts.row.is_numbers:
        raise ExportError(
            "Expected a network that classifies for a single file, which stops by confidence, got one of numbers, "
            "which have none; leave --single-file out."
        )
    if int8 is not None:
        check(facts)
    if any(p.device.type != "cpu" for p in network.parameters()):
        network = copy.deepcopy(network).cpu()
    groups, critics = _parts(network, scope, facts)
    with new_folder(out, force) as folder, probing(network):
        report(f"exporting {len(groups)} layer groups and {len(critics)} critics to ONNX")
        sheet = export_sheet(groups, critics, _example(facts), _dynamic(facts), complete=scope.complete)
        if int8 is not None:
            report("quantising them to int8")
            inputs = (facts.raw(torch.from_numpy(x)).numpy() for x in int8.inputs)
            sheet = quantise(sheet, groups, inputs)
        _write_graphs(folder, sheet, scope)
        engines = dict[str, parity.Engine]()
        if scope.with_groups:
            engines["chain of exported groups"] = parity.chain_engine(folder, scope.num_groups, scope.critics)
        if scope.with_exits:
            engines["exported sub-model"] = parity.exits_engine(folder, scope.served)
        if int8 is not None:
            report("measuring every exit in int8")
            predictor = _predictor(next(iter(engines.values())), scope.served, facts)
            profile, thresholds = int8.measure(predictor, scope.served)
        if scope.single:  # it holds the temperatures of the profile
            temperatures = [exit.temperature for exit in profile.exits]
            save(single_file(sheet, scope.served, temperatures), folder / SINGLE)
            engines["single file"] = parity.single_file_engine(folder / SINGLE, scope.served)
        report("comparing every exit with torch" if int8 is None else "comparing the exits with each other")
        if int8 is None:
            difference = parity.largest_difference(groups, critics, engines, facts)
            parity.store(folder / PARITY, parity.torch_engine(groups, critics), scope.served, facts)
        else:
            parity.store(folder / PARITY, next(iter(engines.values())), scope.served, facts)
            difference = parity.largest_disagreement(list(engines.values()), facts)
        report("timing every exit")
        rules = thresholds.of_exits(scope.served) if thresholds is not None and scope.with_groups else None
        reads_on = scope.with_groups and parity.reads_on(folder, scope.num_groups, scope.critics, facts)
        write = partial(_write_records, folder, trained, scope, difference, reads_on, int8 is not None, rules)
        write(profile)  # the session that times the exits opens a complete bundle
        write(_timed(folder, facts, profile, scope))
        Bundle.open(folder)
    return Bundle.open(out, verify=False)


def try_export(network: LCTNetwork, facts: Facts) -> float:
    """Export all groups and critics, trained or not, and write nothing; return the largest difference from torch.

    It finds early what would fail after a long training. Raises ExportError.

    >>> try_export(LCTNetwork.cut(model, torch.zeros(2, 3, 32, 32)), facts) < 1e-4  # doctest: +SKIP
    True
    """
    everything = tuple(range(1, network.num_groups + 1))
    scope = _Scope(network.num_groups, everything, with_groups=True, with_exits=False, single=False)
    groups, critics = list(network.groups), dict(enumerate(network.critics, start=1))
    with TemporaryDirectory() as parent, new_folder(Path(parent) / "trial", force=False) as folder, probing(network):
        sheet = export_sheet(groups, critics, _example(facts), _dynamic(facts), complete=True)
        _write_graphs(folder, sheet, scope)
        engine = parity.chain_engine(folder, scope.num_groups, scope.critics)
        return parity.largest_difference(groups, critics, {"chain of exported groups": engine}, facts)


def _parts(network: LCTNetwork, scope: _Scope, facts: Facts) -> tuple[list[nn.Module], dict[int, nn.Module]]:
    """Return the groups and critics to export; they read arrays, and answer numbers, in the unit of the data."""

    def answering(part: nn.Module) -> nn.Module:
        return nn.Sequential(part, InUnit(facts.centers, facts.scale)) if facts.centers else part

    groups: list[nn.Module] = [*network.groups][: scope.num_groups]
    if facts.inputs == "array" and facts.mean:
        groups[0] = nn.Sequential(FromUnit(facts.mean, facts.std), groups[0])
    if scope.complete:
        groups[-1] = answering(groups[-1])
    return groups, {i: answering(network.critics[i - 1]) for i in scope.critics}


@dataclass(frozen=True)
class _Scope:
    """What is written, of a network with `network_groups` groups."""

    network_groups: int
    served: tuple[int, ...]
    with_groups: bool
    with_exits: bool
    single: bool

    @classmethod
    def of(cls, network: LCTNetwork, profile: Profile, contents: Contents) -> _Scope:
        n, only, single = network.num_groups, contents.only, contents.single
        if profile.num_groups != n:
            raise ExportError(
                f"Expected a profile of the same network, with {n} exits, got one with {profile.num_groups}; analyze "
                f"the run again."
            )
        served = tuple(sorted(set(range(1, n + 1) if contents.exits is None else contents.exits)))
        if not served or served[0] < 1 or served[-1] > n:
            raise ExportError(f"Expected exits from 1 to {n} to export, got {', '.join(map(str, served)) or 'none'}.")
        if only not in (None, "exits", "groups"):
            raise ExportError(f"Expected only 'exits' or only 'groups' to export, got only {only!r}.")
        if single and len(served) < 2:
            raise ExportError(
                f"Expected at least two exits for a single file that chooses among them, got {min(served)} alone; "
                f"leave --single-file out or export more exits."
            )
        return cls(n, served, with_groups=only != "exits", with_exits=only != "groups", single=single)

    @property
    def num_groups(self) -> int:
        """The number of groups that are exported."""
        return self.served[-1]

    @property
    def complete(self) -> bool:
        """Whether the last exported group ends the network."""
        return self.num_groups == self.network_groups

    @property
    def critics(self) -> tuple[int, ...]:
        """The indices of the critics that are exported."""
        return tuple(i for i in self.served if i < self.network_groups)


def _write_graphs(folder: Path, sheet: Sheet, scope: _Scope) -> None:
    if scope.with_groups:
        for i in range(1, scope.num_groups + 1):
            save(sheet.group(i), folder / f"group_{i}.onnx")
        for i in scope.critics:
            save(sheet.critic(i), folder / f"critic_{i}.onnx")
    if scope.with_exits:
        for i in scope.served:
            save(sheet.exit(i), folder / f"exit_{i}.onnx")


def _predictor(engine: parity.Engine, served: tuple[int, ...], facts: Facts) -> Predictor:
    """Return what an engine answers, as torch tensors of the served exits in order."""

    def predict(x: Tensor) -> list[Tensor]:
        logits = engine(facts.raw(x).numpy())
        return [torch.from_numpy(logits[i]) for i in served]

    return predict


def _write_records(
    folder: Path,
    trained: Trained,
    scope: _Scope,
    difference: float,
    reads_on: bool,
    int8: bool,
    rules: ThresholdTable | None,
    profile: Profile,
) -> None:
    profile.save(folder / PROFILE)
    if rules is not None and rules.rules:
        rules.save(folder / THRESHOLDS)
    facts = trained.facts
    is_text = facts.row.is_text
    groups = range(1, scope.num_groups + 1) if scope.with_groups else ()
    manifest = Manifest(
        toolkit=__version__,
        task=facts.task,
        model=trained.model_name,
        num_groups=scope.network_groups,
        input_shape=("batch", "time") if is_text else ("batch", *facts.input_shape),
        input_dtype="int64" if facts.tokens else "float32",
        outputs=facts.outputs,
        classes=facts.classes,
        preprocessing=preprocessing(facts, folder),
        opset=OPSET,
        exits={i: describe_file(folder / f"exit_{i}.onnx") for i in scope.served if scope.with_exits},
        groups=tuple(describe_file(folder / f"group_{i}.onnx") for i in groups),
        critics={i: describe_file(folder / f"critic_{i}.onnx") for i in scope.critics if scope.with_groups},
        single=describe_file(folder / SINGLE) if scope.single else None,
        served=scope.served,
        largest_difference=difference,
        precision="int8" if int8 else "float32",
        reads_on=reads_on,
        profile=describe_file(folder / PROFILE),
        thresholds=describe_file(folder / THRESHOLDS) if (folder / THRESHOLDS).exists() else None,
        parity=describe_file(folder / PARITY),
    )
    write_manifest(folder, manifest)


def _timed(folder: Path, facts: Facts, profile: Profile, scope: _Scope) -> Profile:
    """Measure one sample on one thread as a device answers it: groups 1..i, then critic i.

    Exits that are not served have no latency: one measured by torch is not comparable with these.
    """
    session, x = AnytimeSession(folder), next(parity.samples(facts))
    seconds = median_seconds([partial(session.run_to, i, x) for i in scope.served])
    latencies = {
        i: Latency(seconds=s, engine="onnxruntime", machine=machine())
        for i, s in zip(scope.served, seconds, strict=True)
    }
    exits = tuple(exit.model_copy(update={"latency": latencies.get(exit.index)}) for exit in profile.exits)
    return profile.model_copy(update={"exits": exits})


def _dynamic(facts: Facts) -> tuple[str, ...]:
    return ("batch", "time") if facts.row.is_text else ("batch",)


def _example(facts: Facts) -> Tensor:
    """Two samples: torch treats a size of 1 as a constant."""
    if facts.row.is_text:
        return torch.zeros(2, max(3, facts.input_shape[0]), dtype=torch.int64)
    return torch.zeros(2, *facts.input_shape, dtype=torch.int64 if facts.tokens else torch.float32)
