"""What a run needs of its minibatches, looked at before it begins and not an epoch later."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from anytime_lct.data import Dataset
from anytime_lct.errors import DataError
from anytime_lct.learner import Clock
from anytime_lct.network import LCTNetwork
from anytime_lct.training.team import Team


def shortest_minibatch(data: Dataset, clock: Clock, team: Team) -> int:
    """Return the fewest samples that a process gets of a minibatch; raises DataError where that is none."""
    if clock.per_epoch < 1:
        raise DataError("The training split has no whole minibatch; lower data.batch_size or data.validation.")
    shortest = min(data.num_rows("train", number) for number in (0, clock.per_epoch - 1))
    if shortest < team.replicas:
        raise DataError(
            f"Expected at least one sample of every minibatch for each of {team.replicas} replicas, got {shortest} in "
            f"the shortest; choose another data.batch_size."
        )
    return shortest // team.replicas


def expect_to_learn_from_one(network: LCTNetwork, example: Tensor) -> None:
    """Raise DataError where a minibatch of one sample, the `example`, is too few for the network's batch norms."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            deepcopy(network).train()(example)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                "Expected two samples at least in every minibatch of a process, since batch norms of this network see "
                "one value a sample, got one in the last; choose another data.batch_size or data.validation."
            ) from None
