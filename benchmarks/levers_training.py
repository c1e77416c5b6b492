"""One run of benchmarks/levers.py: a network trained by a variant of the rule, each minibatch as one CUDA graph.

`train` is a generator: it hands the work of some steps to the device, yields, and returns the accuracies of all exits
at the end. So one thread drives many runs, whose kernels overlap. All that a minibatch takes is on the device: images,
the draws of an epoch, rates and the number of the step. A graph of it therefore takes no argument.
"""

from __future__ import annotations

import copy
import gc
import math
import statistics
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from levers_networks import SIDE, TRUNKS, Critics, Network, build
from torch import Tensor, nn
from torch.nn import functional as F

PAD, EAGER_STEPS, CHUNK, EVALUATED, RISE_FROM = 4, 3, 16, 2500, 1 / 25


@dataclass(frozen=True)
class Options:
    """One variant: the network, the rule with its levers, and the recipe."""

    trunk: str = "resnet14"
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    blocks: int = 2
    ratio: float = 0.375
    concat: bool = False  # a head reads the features of the exit before it, detached
    whitening: bool = False  # the stem reads whitened patches
    alone: int = 0  # the network of one exit by backprop; 4 is main

    rule: str = "own"  # own (L_i), paper (5), mixed (both), joint (no detaching)
    reach: tuple[float, ...] = ()  # how strongly group i, i-1, .. follow L_i; empty: detached
    man: float = 0.0  # share of a group's gradient that comes through averaged weights of the next group and exit
    teacher: str = ""  # next or main: its outputs are matched beside the own loss
    teacher_weight: float = 1.0
    temperature: float = 1.0
    dfs: float = 1.0  # part of the channels that a critic's gradient reaches
    stages: tuple[tuple[str, float], ...] = (("all", 1.0),)  # all, main or critics, and for what share of the epochs
    fit_weight: float = 0.0  # of main's outputs in the stage of critics
    fit_rate: float = 0.5  # peak of the rate in that stage, over the usual one

    epochs: int = 16
    batch: int = 256
    rate: float = 0.1  # peak, for 128 samples
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    rise: float = 0.3  # share of the steps in which the rate rises
    smoothing: float = 0.0
    bn_momentum: float = 0.1
    ema: float = 0.99
    flips: str = "random"  # or alternating
    cutout: int = 0

    @property
    def critics(self) -> Critics:
        return Critics(self.shares, self.blocks, self.ratio, self.concat)


@dataclass(frozen=True)
class Data:
    """Images as bytes (N, H, W, 3), those of training padded to 40x40, and their labels (N,), on the device."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mean: Tensor
    scale: Tensor
    filters: Tensor  # whitening filters of the training images

    def normalised(self, images: Tensor) -> Tensor:
        """Return images (B, H, W, 3) as numbers (B, 3, H, W), channels last in memory."""
        return ((images.float() - self.mean) * self.scale).permute(0, 3, 1, 2)


class Minibatches:
    """Minibatches of one epoch after another, drawn before each epoch: shuffled, moved, mirrored, with holes."""

    def __init__(self, data: Data, options: Options, seed: int) -> None:
        images = data.train[0]
        self.data, self.options, self.device = data, options, images.device
        self.steps = len(images) // options.batch
        if not self.steps:
            raise ValueError(f"Expected a minibatch of at most {len(images)} samples, got {options.batch}.")
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._mirrored = self._whole_numbers(2, len(images))
        self._draws = torch.zeros(6, self.steps * options.batch, dtype=torch.int64, device=self.device)
        self._batch = torch.arange(options.batch, device=self.device)
        self._side = torch.arange(SIDE, device=self.device)

    def draw(self, epoch: int) -> None:
        """Draw an epoch: samples, top, left, whether mirrored, row and column of the hole."""
        count = self._draws.shape[1]
        order = torch.rand(len(self._mirrored), generator=self._generator, device=self.device).argsort()[:count]
        mirrored = self._whole_numbers(2, count)
        if self.options.flips == "alternating":
            mirrored = (self._mirrored[order] + epoch) % 2
        places = [self._whole_numbers(high, count) for high in (2 * PAD + 1, 2 * PAD + 1, SIDE, SIDE)]
        self._draws.copy_(torch.stack([order, *places[:2], mirrored, *places[2:]]))

    def take(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, 32, 32) and labels (B,) of a step (1,), by operations that a graph can hold."""
        where = step % self.steps * self.options.batch + self._batch
        sample, top, left, mirrored, row, column = self._draws.index_select(1, where).unbind()
        rows = self._side + top[:, None]
        columns = torch.where(mirrored[:, None] > 0, SIDE - 1 - self._side, self._side) + left[:, None]
        images, labels = self.data.train
        x = self.data.normalised(images[sample[:, None, None], rows[:, :, None], columns[:, None, :]])
        if self.options.cutout:
            near = [(2 * (self._side - place[:, None])).abs() < self.options.cutout for place in (row, column)]
            x = x.masked_fill((near[0][:, :, None] & near[1][:, None, :])[:, None], 0.0)
        return x, labels.index_select(0, sample)

    def _whole_numbers(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=self._generator, device=self.device)


Objective = tuple[Tensor, list[tuple[nn.Parameter, float]]]  # a loss, and the weights that follow it, how strongly


def objectives(network: Network, averaged: Network, x: Tensor, y: Tensor, options: Options) -> list[Objective]:
    """Return the losses of a minibatch in a stage that trains everything, each with the weights that it trains."""
    apart = options.rule != "joint" and not options.reach
    read = partial(_read, part=options.dfs, scale=1.0 - options.man)
    logits, maps = network.run(x, Tensor.detach if apart else _through, read)
    exits = range(len(logits))
    per_sample = [cross_entropy(Z, y, options) for Z in logits]  # (1)
    own = [L.mean() for L in per_sample]
    for i in exits[:-1]:
        if options.teacher:
            teacher = logits[i + 1 if options.teacher == "next" else -1]
            own[i] = own[i] + options.teacher_weight * divergence(logits[i], teacher, options.temperature)
        if options.man:
            ahead = cross_entropy(averaged.answer(maps[i], i + 1, first=i + 1), y, options)
            own[i] = own[i] + options.man * ahead.mean()
    groups = [[(weight, 1.0) for weight in network.of_groups(i)] for i in exits]
    critics = [[(weight, 1.0) for weight in network.of_critics(i)] for i in exits]
    if options.reach:
        return [(own[i], critics[i] + _reached(network, i, options.reach)) for i in exits]
    if options.rule in ("paper", "mixed") and len(exits) > 1:
        matching = _sum(F.l1_loss(per_sample[i], per_sample[i + 1].detach()) for i in exits[:-1])  # (5)
        if options.rule == "mixed":
            matching = matching + _sum(own[:-1])
        return [(_sum(own), [*chain(*groups)]), (matching, [*chain(*critics)])]
    return [(_sum(own), [*chain(*groups, *critics)])]


def main_objectives(network: Network, averaged: Network, x: Tensor, y: Tensor, options: Options) -> list[Objective]:
    """The same of a stage that trains the main network alone."""
    last = len(network.groups) - 1
    weights = [(weight, 1.0) for i in range(last + 1) for weight in network.of_groups(i)]
    return [(cross_entropy(network.answer(x, last), y, options).mean(), weights)]


def critics_objectives(network: Network, averaged: Network, x: Tensor, y: Tensor, options: Options) -> list[Objective]:
    """The same of a stage that trains critics behind frozen groups, by their own loss and by main's outputs."""
    logits, _ = network.run(x, Tensor.detach, Tensor.detach)
    loss = _sum(cross_entropy(Z, y, options).mean() for Z in logits[:-1])
    if options.fit_weight:
        fits = [divergence(Z, logits[-1], options.temperature) for Z in logits[:-1]]
        loss = loss + options.fit_weight * _sum(fits)
    return [(loss, [(weight, 1.0) for i in range(len(logits)) for weight in network.of_critics(i)])]


STAGES = {"all": objectives, "main": main_objectives, "critics": critics_objectives}


def cross_entropy(Z: Tensor, y: Tensor, options: Options) -> Tensor:
    """Return the loss of every sample, (B,)."""
    return F.cross_entropy(Z.float(), y, reduction="none", label_smoothing=options.smoothing)


def divergence(Z: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the KL divergence from a teacher's logits, which get no gradient, times the temperature squared."""
    target = F.log_softmax(teacher.detach().float() / temperature, 1)
    own = F.log_softmax(Z.float() / temperature, 1)
    return F.kl_div(own, target, reduction="batchmean", log_target=True) * temperature**2


def gradients(wanted: Sequence[Objective], weights: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of every weight, summed over objectives, in the weight's own layout in memory."""
    total = dict[nn.Parameter, Tensor]()
    for number, (loss, scaled) in enumerate(wanted, start=1):
        own = torch.autograd.grad(loss, [weight for weight, _ in scaled], retain_graph=number < len(wanted))
        for (weight, scale), gradient in zip(scaled, own, strict=True):
            part = gradient if scale == 1 else scale * gradient
            total[weight] = total[weight] + part if weight in total else part
    pairs = [(total[weight], weight) for weight in weights]
    return [own if own.stride() == w.stride() else torch.empty_like(w).copy_(own) for own, w in pairs]


class Stage:
    """A stage of a run: its weights, their velocities and rates, and one step of stochastic gradient descent."""

    def __init__(self, name: str, network: Network, batches: Minibatches, options: Options, epochs: int) -> None:
        device = batches.device
        self.network, self.batches, self.options, self.epochs = network, batches, options, epochs
        self.objectives = STAGES[name]
        self.averaged = copy.deepcopy(network).requires_grad_(False)
        network.train()
        last = len(network.groups) - 1
        if name == "critics":
            network.groups.eval()
        groups = [weight for i in range(last + 1) for weight in network.of_groups(i)]
        critics = [weight for i in range(last + 1) for weight in network.of_critics(i)]
        self.weights = {"all": groups + critics, "main": groups, "critics": critics}[name]
        trained = {id(weight) for weight in self.weights}
        for weight in network.parameters():
            weight.requires_grad_(id(weight) in trained)
        self._state = [*network.parameters(), *network.buffers()]
        self._averages = [*self.averaged.parameters(), *self.averaged.buffers()]
        self._velocities = [torch.zeros_like(weight) for weight in self.weights]
        peak = options.rate * options.batch / 128 * (options.fit_rate if name == "critics" else 1.0)
        steps = epochs * batches.steps
        self._rates = torch.tensor([peak * one_cycle(k, steps, options.rise) for k in range(steps)], device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._losses = torch.zeros((), device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, graphs: bool) -> Iterator[None]:
        """Hand all steps to the device; yield after every few."""
        done = 0
        for epoch in range(self.epochs):
            self.batches.draw(epoch)
            for _ in range(self.batches.steps):
                if graphs and done >= EAGER_STEPS:
                    self._graph = self._graph or self.capture()
                    self._graph.replay()
                else:
                    self.step()
                done += 1
                if done % CHUNK == 0:
                    yield

    def loss(self) -> Tensor:
        """Return the running mean of the sum of all objectives."""
        return self._losses

    def step(self) -> None:
        """Take one step; all that changes is on the device, and nothing is read from there."""
        x, y = self.batches.take(self._step)
        with torch.autocast(x.device.type, torch.bfloat16):
            wanted = self.objectives(self.network, self.averaged, x, y, self.options)
        own = gradients(wanted, self.weights)
        with torch.no_grad():
            rate = self._rates.index_select(0, self._step).view(())
            torch._foreach_add_(own, self.weights, alpha=self.options.weight_decay)
            torch._foreach_mul_(self._velocities, self.options.momentum)
            torch._foreach_add_(self._velocities, own)
            if self.options.nesterov:
                torch._foreach_add_(own, self._velocities, alpha=self.options.momentum)
                torch._foreach_mul_(own, rate)
            else:
                own = list(torch._foreach_mul(self._velocities, rate))
            torch._foreach_sub_(self.weights, own)
            torch._foreach_lerp_(self._averages, self._state, 1.0 - self.options.ema)
            self._losses.lerp_(_sum(loss.detach() for loss, _ in wanted), 0.02)
            self._step.add_(1)

    def capture(self) -> torch.cuda.CUDAGraph:
        """Record a step on the current stream, which must not be the default one; nothing runs."""
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # what it would free, a recording does not allow
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.step()
            finally:
                graph.capture_end()
        finally:
            gc.enable()
        return graph


def train(options: Options, data: Data, seed: int, graphs: bool) -> Generator[None, None, dict[str, Any]]:
    """Train and measure a variant; yield whenever work is on its way to the device.

    Returns the share of correct answers of every exit on validation and test, by the weights and by their averages.
    """
    network = make_network(options, data, seed)
    batches = Minibatches(data, options, seed)
    stages = list[Stage]()  # all live to the end, because the device may still replay their graphs
    for name, share in options.stages:
        stages.append(Stage(name, network, batches, options, max(1, round(share * options.epochs))))
        yield from stages[-1].run(graphs)
    measured = {
        split + suffix: accuracies(part, data, split)
        for split in ("validation", "test")
        for suffix, part in (("", network), ("_averaged", stages[-1].averaged))
    }
    yield
    losses = [stage.loss().item() for stage in stages]
    return {name: value.tolist() for name, value in measured.items()} | {"losses": losses}


def make_network(options: Options, data: Data, seed: int) -> Network:
    """Return the network of a variant on the device of the data."""
    torch.manual_seed(seed)
    filters = data.filters.cpu() if options.whitening else None
    network = build(TRUNKS[options.trunk], options.critics, options.alone, filters)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = options.bn_momentum
    return network.to(device=data.mean.device, memory_format=torch.channels_last)


def measure_step(options: Options, data: Data, rounds: int = 5, steps: int = 20) -> tuple[float, float]:
    """Return the milliseconds of one step on an idle GPU, the median of rounds, and the MB that it takes at the peak.

    The MB are those beyond weights, averages and velocities: activations, gradients and workspaces.
    """
    network, batches = make_network(options, data, seed=0), Minibatches(data, options, seed=0)
    epochs = 1 + (EAGER_STEPS + 1 + rounds * steps) // batches.steps
    stage = Stage(options.stages[0][0], network, batches, options, epochs)
    batches.draw(0)
    for _ in range(EAGER_STEPS):
        stage.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    stage.step()
    peak = torch.cuda.max_memory_allocated() - before
    graph = stage.capture()
    times = list[float]()
    for _ in range(rounds):
        marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        marks[0].record()
        for _ in range(steps):
            graph.replay()
        marks[1].record()
        marks[1].synchronize()
        times.append(marks[0].elapsed_time(marks[1]) / steps)
    return statistics.median(times), peak / 1e6


@torch.no_grad()
def accuracies(network: Network, data: Data, split: str) -> Tensor:
    """Return the share of correct answers of every exit, (N,)."""
    network.eval()
    images, labels = getattr(data, split)
    right = torch.zeros(len(network.groups), device=images.device)
    for x, y in zip(images.split(EVALUATED), labels.split(EVALUATED), strict=True):
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = network(data.normalised(x))
        right += torch.stack([(Z.argmax(1) == y).sum() for Z in logits])
    return right / len(labels)


def one_cycle(step: int, steps: int, rise: float) -> float:
    """Return the rate over its peak: cosine from 1/25 up to 1 over the first `rise` of the steps, cosine down to 0."""
    peak = max(1.0, rise * steps)
    if step < peak:
        return RISE_FROM + (1 - RISE_FROM) * (1 - math.cos(math.pi * step / peak)) / 2
    return (1 + math.cos(math.pi * (step - peak) / max(1.0, steps - peak))) / 2


def _through(h: Tensor) -> Tensor:
    return h


def _read(h: Tensor, part: float, scale: float) -> Tensor:
    """Return h for a critic, whose gradient reaches the first part of the channels only, times `scale`."""
    if part < 1:
        first = round(part * h.shape[1])
        h = torch.cat([h[:, :first], h[:, first:].detach()], 1).contiguous(memory_format=torch.channels_last)
    return h if scale == 1 else torch.lerp(h.detach(), h, scale)


def _reached(network: Network, i: int, reach: tuple[float, ...]) -> list[tuple[nn.Parameter, float]]:
    """Return the weights of group i, i-1, .. with how strongly they follow L_i; the last group has only its own."""
    scales = (1.0, *reach[1:]) if i == len(network.groups) - 1 else reach
    return [(weight, scale) for k, scale in enumerate(scales[: i + 1]) for weight in network.of_groups(i - k)]


def _sum(losses: Iterator[Tensor] | Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()
