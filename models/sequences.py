"""A classifier of sequences: of tokens, which are embedded, or of numbers, by LSTM layers and the mean over steps."""

from __future__ import annotations

from torch import Tensor, nn

from anytime_lct.errors import ModelError
from anytime_lct.models.lstm import LSTMLayer
from anytime_lct.models.options import expect_dropout, expect_whole

NAME = "lstm-classifier"


class SequenceClassifier(nn.Module):
    """Give a sequence a class, by the mean of the last layer's steps.

    Reads numbers of `tokens` (B, T) int64, or a series of `features` numbers a step (B, T, F), which of one number may
    be (B, T); returns logits (B, outputs).
    """

    def __init__(
        self, tokens: int, features: int, outputs: int, layers: int, units: int, embedding: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding) if tokens else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=0.1)  # small ones are soon outgrown by what is learnt
        self.dropout = nn.Dropout(dropout)
        self.is_flat = not tokens and features == 0
        first = embedding if tokens else max(1, features)
        self.lstm = nn.Sequential(
            *(
                LSTMLayer(units if k else first, units, dropout if k < layers - 1 else 0.0, both=True)
                for k in range(layers)
            )
        )
        self.norm = nn.LayerNorm(units)
        self.output = nn.Linear(units, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.dropout(self.embedding(x))
        elif self.is_flat:
            x = x.unsqueeze(-1)
        return self.output(self.norm(self.lstm(x)).mean(dim=1))


def lstm_classifier(
    input_shape: tuple[int, ...],
    outputs: int,
    tokens: int | None = None,
    layers: int = 4,
    units: int = 128,
    embedding: int = 128,
    dropout: float = 0.3,
) -> SequenceClassifier:
    """Make a classifier of tokens (T,), or of series (T,) or (T, F), of T steps; raises ModelError.

    `dropout` acts between the LSTM layers.

    >>> from torch import zeros
    >>> lstm_classifier((50, 3), 2, 0)(zeros(1, 50, 3)).shape
    torch.Size([1, 2])
    """
    if tokens is None or len(input_shape) not in ((1,) if tokens else (1, 2)):
        raise ModelError(
            f"The network '{NAME}' reads tokens (T,), or series (T, F) of numbers, but the data has "
            f"{'images or text' if tokens is None else 'inputs'} {tuple(input_shape)}."
        )
    for key, value in (("layers", layers), ("units", units), ("embedding", embedding)):
        expect_whole(NAME, key, value)
    expect_dropout(NAME, dropout)
    features = input_shape[1] if len(input_shape) == 2 else 0
    return SequenceClassifier(tokens, features, outputs, layers, units, embedding, dropout)
