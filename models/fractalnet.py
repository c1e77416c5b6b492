"""Fractal networks, whose columns answer alone (Larsson et al., ICLR 2017).

A block of C columns joins paths of 1, 2, 4 .. convolutions by their mean; column 1 is the shortest:

    row     column 1   2   3
     1                     x
     2                 x   x    join of columns 2, 3
     3                     x
     4             x   x   x    join of all, the block's output

Drop-path in training is drawn for every sample: for half of them each join loses each of its inputs with probability
`drop_path`, but keeps one (local); for the others one column is drawn, which alone is kept in all blocks (global). As
the samples of a minibatch take different paths, batch norms answer with the statistics that they train with. The draws
follow torch's random state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from anytime_lct.errors import ModelError
from anytime_lct.models.options import expect_dropout, expect_image, expect_whole, expect_wholes
from anytime_lct.models.resnet import initialize

GLOBAL_SHARE = 0.5
ALL = -1  # instead of a sample's column: all columns, of which joins drop some


class FractalBlock(nn.Module):
    """Columns of convolutions and their joins, (B, inputs, H, W) to (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, columns: int) -> None:
        super().__init__()
        self.columns = nn.ModuleList(
            nn.Sequential(*(_convolution(outputs if k else inputs, outputs) for k in range(2**column)))
            for column in range(columns)
        )
        self.distances = [2 ** (columns - 1 - column) for column in range(columns)]  # between convolutions, in rows

    def forward(self, x: Tensor, kept: Tensor | None = None, drop_path: float = 0.0) -> Tensor:
        """Join all columns, or what drop-path leaves; `kept` is the column of each sample (B,), from 0, or ALL."""
        behind = {0: x}
        for row in range(1, self.distances[0] + 1):
            joined = [column for column, distance in enumerate(self.distances) if row % distance == 0]
            paths = [self._convolve(column, row, behind) for column in joined]
            if len(paths) == 1:
                behind[row] = paths[0]
            elif kept is None:
                behind[row] = sum(paths[1:], paths[0]) / len(paths)
            else:
                behind[row] = _mean_of_kept(paths, join_weights(kept, joined, drop_path))
        return behind[self.distances[0]]

    def path(self, column: int) -> list[nn.Module]:
        """Return the convolutions of a column, from 0, in order."""
        return list(self.columns[column].children())

    def _convolve(self, column: int, row: int, behind: Mapping[int, Tensor]) -> Tensor:
        distance = self.distances[column]
        return self.path(column)[row // distance - 1](behind[row - distance])


def join_weights(kept: Tensor, joined: Sequence[int], drop_path: float) -> Tensor:
    """Return the weight of each joined column for each sample, (B, columns joined), which sum to 1.

    Where the join lacks the column of a sample, no path of the sample uses the result, and all columns count.
    """
    draws = torch.rand(len(kept), len(joined), device=kept.device)
    local = (draws >= drop_path) | (draws == draws.amax(dim=1, keepdim=True))
    alone = kept[:, None] == torch.tensor(joined, device=kept.device)
    alone = alone | ~alone.any(dim=1, keepdim=True)
    keep = torch.where(kept[:, None] == ALL, local, alone)
    return keep / keep.sum(dim=1, keepdim=True)


def _mean_of_kept(paths: Sequence[Tensor], weights: Tensor) -> Tensor:
    columns = weights.to(paths[0].dtype)[:, :, None, None, None].unbind(dim=1)
    return torch.stack([weight * path for weight, path in zip(columns, paths, strict=True)]).sum(dim=0)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class FractalBody(nn.Module):
    """Blocks with max-pooling between them and drop-path in training, (B, C, H, W) to (B, width, H', W')."""

    def __init__(
        self, channels: int, columns: int, width: Sequence[int], drop_path: float, dropout: Sequence[float]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            FractalBlock(inputs, outputs, columns) for inputs, outputs in zip([channels, *width], width, strict=False)
        )
        self.drops = nn.ModuleList(nn.Dropout(rate) if rate else nn.Identity() for rate in dropout)
        self.pool = nn.MaxPool2d(2)
        self.drop_path = drop_path if columns > 1 else 0.0
        self.columns = columns

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Compute all columns; in training, samples take what drop-path leaves, or the columns `kept`, (B,), from 0."""
        if self.training and self.drop_path and kept is None:
            kept = torch.randint(self.columns, (len(x),), device=x.device)
            kept = kept.masked_fill(torch.rand(len(x), device=x.device) >= GLOBAL_SHARE, ALL)
        for k, (block, drop) in enumerate(self.parts()):
            x = drop(block(self.pool(x) if k else x, kept, self.drop_path))
        return x

    def parts(self) -> list[tuple[FractalBlock, nn.Module]]:
        """Return the blocks, each with the dropout behind it."""
        return list(zip(cast(Iterable[FractalBlock], self.blocks), self.drops, strict=True))


class FractalNet(nn.Module):
    """A fractal network, (B, C, H, W) to logits (B, outputs); `column(1)` to `column(C)` are its exits."""

    def __init__(self, body: FractalBody, width: int, outputs: int) -> None:
        super().__init__()
        self.body = body
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, outputs)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.pool(self.body(x))))

    def column(self, column: int) -> nn.Sequential:
        """Return the plain network of column 1 (the shortest), 2 .., whose layers are those of this network.

        >>> fractalnet((3, 32, 32), 10).column(1).eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        """
        if not 1 <= column <= self.body.columns:
            raise ModelError(f"Expected a column from 1 to {self.body.columns} of 'fractalnet', got {column}.")
        layers: list[nn.Module] = []
        for block, drop in self.body.parts():
            layers += [*([self.body.pool] if layers else []), *block.path(column - 1), drop]
        return nn.Sequential(*layers, self.pool, self.flatten, self.fc)


def fractalnet(
    input_shape: tuple[int, ...],
    outputs: int,
    columns: int = 3,
    width: Sequence[int] = (16, 32, 64),
    drop_path: float = 0.15,
    dropout: float = 0.0,
) -> FractalNet:
    """Make a fractal network with one block for each number of channels in `width`, and max-pooling between blocks.

    The default takes 36.7M multiply-adds for an image of 3x32x32, and its columns 2.8M, 9.9M and 24.0M; the paper's
    for CIFAR has 4 columns and is 64, 128, 256, 512, 512 wide. `drop_path` is the share of inputs that a join loses in
    training, and 0 turns drop-path off. `dropout` acts behind the last block, and less behind those before: it grows
    evenly from 0 behind the first. Raises ModelError.
    """
    expect_whole("fractalnet", "columns", columns)
    widths = expect_wholes("fractalnet", "width", width)
    expect_dropout("fractalnet", dropout)
    expect_dropout("fractalnet", drop_path, "a drop_path")
    channels, *_ = expect_image("fractalnet", input_shape, smallest=2 ** (len(widths) - 1))
    rates = [dropout * k / max(1, len(widths) - 1) for k in range(len(widths))]
    return FractalNet(FractalBody(channels, columns, widths, drop_path, rates), widths[-1], outputs)
