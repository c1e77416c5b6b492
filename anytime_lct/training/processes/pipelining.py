"""The schedules of torch's pipelines, GPipe and 1F1B, between the workers of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from anytime_lct.training.processes.team import Team

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


def schedule(
    kind: str,
    module: nn.Module,
    team: Team,
    ends: tuple[Tensor, Tensor],
    microbatches: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Any:
    """Make a schedule for minibatches of `microbatches` parts; `ends` are example input and output of the module."""
    x, y = ends
    stage = PipelineStage(module, team.worker, team.workers, team.device, x, y, group=dist.group.WORLD)
    return SCHEDULES[kind](stage, microbatches, loss)
