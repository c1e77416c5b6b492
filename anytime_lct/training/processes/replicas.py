"""Replicas: the same layer group in several processes, each with a share of every minibatch.

    joint gradient = sum over replicas of (rows here / rows in all) x gradient of the mean over the rows here

which is the gradient of the mean over the joint minibatch, as in one process. The sum is a single all-reduce that runs
while the worker continues; the worker waits for it no earlier than the weights' next use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from anytime_lct.recipes.recipe import Wire


class Summing:
    """The sum of gradients over all replicas, started at once; `finish` waits and writes the joint ones to `grad`."""

    def __init__(self, group: Any, parameters: Iterable[nn.Parameter], share: float) -> None:
        self._parameters = [p for p in parameters if p.grad is not None]
        gradients = [p.grad.reshape(-1) for p in self._parameters if p.grad is not None]
        self._flat = torch.cat(gradients).mul_(share) if gradients else torch.zeros(1)
        self._work = dist.all_reduce(self._flat, group=group, async_op=True)

    def finish(self) -> None:
        if self._work is not None:
            self._work.wait()
        start = 0
        for p in self._parameters:
            if p.grad is not None:
                p.grad.copy_(self._flat[start : start + p.numel()].view_as(p.grad))
                start += p.numel()


def joint_mean(group: Any, value: Tensor, share: float) -> Tensor:
    """Return the mean over the joint minibatch from the mean over the rows here."""
    total = value.detach() * share
    dist.all_reduce(total, group=group)
    return total


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the joint minibatch of all replicas, on any device; torch's SyncBatchNorm needs a GPU.

    Both sums of a layer take one message in the forward pass and one in the backward pass.
    """

    group: Any = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.group is None:
            return super().forward(input)
        own = torch.cat([input.sum((0, 2, 3)), input.square().sum((0, 2, 3)), input.new_ones(1) * _count(input)])
        joint = _Sum.apply(own, self.group)
        count = joint[-1].detach()
        mean, square = (joint[:-1] / count).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), rate)
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return input * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class _Sum(torch.autograd.Function):
    """The sum over all replicas, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def data_parallel(module: nn.Module, group: Any, wire: Wire) -> nn.Module:
    """Wrap a module in torch's DistributedDataParallel, with torch's hook where gradients are sent as bf16."""
    parallel = DistributedDataParallel(module, process_group=group, gradient_as_bucket_view=True)
    if wire == "bf16":
        parallel.register_comm_hook(group, bf16_compress_hook)
    return parallel


def join_batch_norms(module: nn.Module, group: Any) -> None:
    """Make every BatchNorm2d in `module` a JointBatchNorm2d; names and weights stay."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = JointBatchNorm2d
            part.group = group  # type: ignore[assignment]


def _count(x: Tensor) -> float:
    return x.numel() / x.shape[1]
