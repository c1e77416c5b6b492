"""The character model of Tables V, IX and X: an embedding, LSTM layers, and a linear layer at every step."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct.errors import ModelError
from anytime_lct.models.options import expect_dropout


class LSTMLayer(nn.LSTM):
    """One LSTM layer that hands over its outputs alone, (B, T, F) to (B, T, units), with dropout on them.

    With `both` directions one half of the units reads forward, the other backward. Dropout is part of the layer, so
    that parameters have the same names without it.
    """

    def __init__(self, features: int, units: int, output_dropout: float = 0.0, *, both: bool = False) -> None:
        super().__init__(features, units // 2 if both else units, batch_first=True, bidirectional=both)
        for name, bias in self.named_parameters():
            if name.startswith("bias_hh"):
                nn.init.zeros_(bias)  # it is added to the first bias, which is initialised at random
        self.output_dropout = output_dropout

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.dropped(super().forward(x)[0])

    def dropped(self, output: Tensor) -> Tensor:
        return F.dropout(output, self.output_dropout, self.training) if self.output_dropout else output


class CarriedLSTM(LSTMLayer):
    """One LSTM layer, (B, T, F) to (B, T, units), that can continue from the last state of the previous minibatch.

    Training does this for every module with the attributes `carry` and `state`. While `carry` is True, forward starts
    from `state` and stores its last state there, detached; the trainer sets `carry`, and sets `state` to None at the
    start of a text. While `carry` is False, forward is a pure function that starts from zero. A changed batch size
    also starts from zero. `state` is (h, c), each (1, B, units), and is not in the state dict.
    """

    def __init__(self, features: int, units: int, output_dropout: float = 0.0) -> None:
        super().__init__(features, units, output_dropout)
        self.carry = False
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        continues = self.carry and self.state is not None and self.state[0].shape[1] == x.shape[0]
        output, state = nn.LSTM.forward(self, x, self.state if continues else None)
        if self.carry:
            self.state = (state[0].detach(), state[1].detach())
        return self.dropped(output)


class CharacterLSTM(nn.Module):
    """Predict the next character at every step: int64 (B, T) to logits (B, T, symbols)."""

    def __init__(self, symbols: int, layers: int, units: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.lstm = nn.Sequential(
            *(CarriedLSTM(units if k else embedding, units, dropout if k < layers - 1 else 0.0) for k in range(layers))
        )
        self.output = nn.Linear(units, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(x)))


def lstm(
    input_shape: tuple[int, ...],
    outputs: int,
    layers: int = 4,
    units: int = 600,
    embedding: int = 128,
    dropout: float = 0.0,
) -> CharacterLSTM:
    """Make a character model; the default has the size of Table X, 10.4 M parameters with 50 symbols.

    `dropout` acts between the LSTM layers.
    """
    if len(input_shape) != 1:
        raise ModelError(f"The network 'lstm' reads text (T,), but the data has inputs {tuple(input_shape)}.")
    for name, value in (("layers", layers), ("units", units), ("embedding", embedding)):
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"Expected {name} of at least 1 for the network 'lstm', got {value!r}.")
    expect_dropout("lstm", dropout)
    return CharacterLSTM(outputs, layers, units, embedding, dropout)
