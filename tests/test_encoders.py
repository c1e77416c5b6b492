"""Networks of the library transformers, and what is theirs: a train() of their own, objects as answers, tables."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from anytime_lct.critics import places
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import PartitionError
from anytime_lct.models import networks
from anytime_lct.models.checks import LogitsOf, expect_logits
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CriticRecipe, CutRecipe

TOKENS, TIMES = 400, 14


@dataclasses.dataclass
class Answer:
    logits: Tensor


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outer(nn.GELU()(self.inner(self.norm(h))))  # an activation that is no part


class Body(nn.Module):
    """Has a train() of its own, which does what `way` says."""

    def __init__(self, width: int, way: str) -> None:
        super().__init__()
        self.way, self.blocks = way, nn.ModuleList(Block(width) for _ in range(4))

    def train(self, mode: bool = True) -> Body:
        super().train(mode)
        if self.way == "freezes":
            self.blocks[0].eval()
        if self.way == "notes":
            self.is_learning = mode
        if self.way == "merges":
            self.blocks[0].inner.weight.data += 1.0 if mode else -1.0
        if self.way == "replaces":
            self.blocks[0].inner.weight = nn.Parameter(self.blocks[0].inner.weight.detach().clone())
        if self.way == "fails" and mode:
            raise RuntimeError("not now")
        return self

    def forward(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h)
        return h


class Encoder(nn.Module):
    def __init__(self, tokens: int, outputs: int, way: str = "as torch", width: int = 16) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(tokens, width), Body(width, way), nn.Linear(width, outputs)

    def forward(self, ids: Tensor | None = None, labels: Tensor | None = None) -> Answer:
        return Answer(self.head(self.body(self.embed(ids)).mean(1)))


def places_of(model: nn.Module) -> list[str]:
    return [cut.name for cut in Trace.of(model, torch.zeros(2, TIMES, dtype=torch.int64)).candidates]


def test_an_object_with_logits_is_an_answer():
    model = expect_logits("mine", Encoder(TOKENS, 3), (TIMES,), 3, TOKENS)
    assert isinstance(model, LogitsOf) and model(torch.zeros(2, TIMES, dtype=torch.int64)).shape == (2, 3)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    assert expect_logits("plain", plain, (2, 3), 2, 0) is plain


@pytest.mark.parametrize(
    ("way", "is_cut"),
    [("as torch", True), *((way, False) for way in ("freezes", "notes", "merges", "replaces", "fails"))],
)
def test_a_train_that_sets_modes_alone_is_followed(way, is_cut):
    model = LogitsOf(Encoder(TOKENS, 3, way))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert ("model.body.blocks.1" in places_of(model)) == is_cut
    assert "is_learning" not in vars(model.model.body) and all(part.training for part in model.modules())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_table_of_embeddings_is_no_part_of_the_body():
    """The body has a hundredth of the weights here, and is a sequence of blocks all the same."""
    names = places_of(LogitsOf(Encoder(50_000, 3)))
    assert [f"model.body.blocks.{k}" for k in range(3)] == [name for name in names if name[-1].isdigit()]


def test_default_exits_may_be_a_little_over_their_shares():
    trace = Trace.of(LogitsOf(Encoder(TOKENS, 3)), torch.zeros(2, TIMES, dtype=torch.int64))
    makers = places.CriticMakers(trace, torch.zeros(2, TIMES, dtype=torch.int64), CriticRecipe())
    shares = CutRecipe().targets(4)
    costs = [choice.cost / makers.trunks.whole for choice in places.choose_exits(makers, shares, strict=False)]
    assert all(share - 0.01 < cost < 1.05 * share for share, cost in zip(shares, costs, strict=True))
    with pytest.raises(PartitionError, match=r"within 25.0% .* takes 25.1% with its critic"):
        places.choose_exits(makers, shares, strict=True)


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "ViT", "ConvNext"])
def test_networks_of_transformers_are_cut_and_answer_as_they_do(name, tmp_path):
    pytest.importorskip("transformers")
    sizes = {
        "Bert": "hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, vocab_size=tokens",
        "DistilBert": "dim=16, n_layers=4, n_heads=2, hidden_dim=32, vocab_size=tokens",
        "ViT": "hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=16, "
        "patch_size=4",
        "ConvNext": "hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], patch_size=2",
    }
    is_text = name.endswith("Bert")
    task = "SequenceClassification" if is_text else "ImageClassification"
    (tmp_path / "net.py").write_text(
        f"from transformers import {name}Config, {name}For{task}\n\n"
        f"def make(outputs, tokens=0):\n"
        f"    return {name}For{task}({name}Config(num_labels=outputs, {sizes[name]}))\n"
    )
    shape, tokens = ((TIMES,), TOKENS) if is_text else ((3, 16, 16), None)
    model = networks.build(f"{tmp_path}/net.py:make", shape, 3, tokens).eval()
    x = torch.randint(0, TOKENS, (2, *shape)) if is_text else torch.rand(2, *shape)
    network = LCTNetwork.cut(model, x, CutRecipe(groups=3), CriticRecipe(), compare=True).eval()
    with torch.no_grad():
        assert network.num_groups == 3
        assert torch.allclose(network.sub_model(3)(x), model(x), atol=1e-5)
