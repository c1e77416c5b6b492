"""The single file: every exit by its thresholds, as the resumable session answers; confidence decides by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from bundles import make_profile
from exporting import export
from test_export import IMAGES, TEXT, image_network, profile_of
from torch import nn

from anytime_lct.errors import ExportError
from anytime_lct.exits.bundle import Bundle
from anytime_lct.network import LCTNetwork
from anytime_lct.runtime.confidence import confidence
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.task import Facts


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    network = image_network().eval()
    out = tmp_path_factory.mktemp("single") / "bundle"
    return export(network, IMAGES, profile_of(network), out, model_name="made", single=True)


Ask = Callable[[np.ndarray, list[float]], tuple[np.ndarray, int]]


def opened(bundle: Bundle) -> Ask:
    session = ort.InferenceSession(bundle.path / "anytime.onnx", providers=["CPUExecutionProvider"])

    def ask(x: np.ndarray, thresholds: list[float]) -> tuple[np.ndarray, int]:
        logits, exit_ = session.run(None, {"input": x, "thresholds": np.array(thresholds, np.float32)})
        return np.asarray(logits), int(np.asarray(exit_))

    return ask


def inputs(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 5])
def test_every_exit_is_that_of_the_resumable_session(bundle, rows):
    session, ask, x = AnytimeSession(bundle), opened(bundle), inputs(rows)
    for thresholds, expected in (([0.0, 0.0], 1), ([2.0, 0.0], 2), ([2.0, 2.0], 3), ([1.0, 0.0], 2), ([1.0, 1.0], 3)):
        logits, exit_ = ask(x, thresholds)
        assert exit_ == expected
        np.testing.assert_allclose(logits, session.run_to(expected, x).logits, atol=1e-5)


def test_a_batch_goes_as_deep_as_its_least_certain_sample(bundle):
    ask, x = opened(bundle), inputs(40)
    answers = list(AnytimeSession(bundle).stream(x))
    sure = [answer.probabilities.max(axis=1) for answer in answers]
    for level in np.quantile(np.concatenate(sure[:2]), [0.02, 0.3, 0.6, 0.9]):
        for row in range(len(x)):
            if min(abs(sure[0][row] - level), abs(sure[1][row] - level)) < 1e-4:
                continue
            expected = 1 if sure[0][row] >= level else 2 if sure[1][row] >= level else 3
            assert ask(x[row : row + 1], [level, level])[1] == expected
        whole = 1 if sure[0].min() >= level else 2 if sure[1].min() >= level else 3
        assert ask(x, [level, level])[1] == whole


@pytest.mark.parametrize("facts", [IMAGES, TEXT], ids=["images", "text"])
def test_one_threshold_stops_the_same_samples_as_the_session(tmp_path: Path, facts: Facts):
    """Both divide logits by the temperature of the exit; of a text, the last character decides."""
    torch.manual_seed(0)
    network, x = image_network().eval(), inputs(40)
    if facts is TEXT:
        network = LCTNetwork([nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)], [nn.Linear(6, 7), nn.Linear(6, 7)])
        x = np.random.default_rng(0).integers(0, 7, (40, 5))
    # The second exit is the most accurate: samples that are not confident there go on all the same.
    profile = make_profile((2.5, 2.0, 2.2) if facts is TEXT else (0.8, 0.95, 0.9), metric=facts.metric)
    exits = tuple(e.model_copy(update={"temperature": 0.3 * e.index}) for e in profile.exits)
    profile = profile.model_copy(update={"exits": exits})
    bundle = export(network.eval(), facts, profile, tmp_path / "b", model_name="made", single=True)
    session, ask = AnytimeSession(bundle), opened(bundle)
    level = float(np.median(confidence(session.run_to(1, x).logits, temperature=0.3))) + 0.001  # no tie
    answer = session.run(x, min_confidence=level)
    assert {1, 3} <= set(answer.exits.tolist())
    assert [ask(x[k : k + 1], [level, level])[1] for k in range(40)] == answer.exits.tolist()


def test_weights_lie_in_the_branches_that_need_them(bundle):
    graph = onnx.load(bundle.path / "anytime.onnx").graph
    assert {tensor.name.partition("/")[0] for tensor in graph.initializer if "/" in tensor.name} == {"group_1"}
    assert [value.name for value in graph.input] == ["input", "thresholds"]
    assert [value.name for value in graph.output] == ["logits", "exit"]


def test_chosen_exits_of_a_text(tmp_path: Path):
    torch.manual_seed(0)
    groups = [nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 7)]
    network = LCTNetwork(groups, [nn.Linear(6, 7), nn.Linear(6, 7), nn.Linear(5, 7)]).eval()
    bundle = export(
        network, TEXT, profile_of(network, "bpc"), tmp_path / "b", model_name="made", exits=[1, 3], single=True
    )
    ask, x = opened(bundle), np.arange(10).reshape(2, 5) % 7
    for thresholds, expected in (([0.0], 1), ([2.0], 3)):
        logits, exit_ = ask(x, thresholds)
        with torch.no_grad():
            reference = network.sub_model(expected)(torch.from_numpy(x)).numpy()
        assert exit_ == expected
        np.testing.assert_allclose(logits, reference, atol=1e-5)


def test_one_exit_alone_is_refused(tmp_path: Path):
    network = image_network().eval()
    with pytest.raises(ExportError, match="at least two exits for a single file"):
        export(network, IMAGES, profile_of(network), tmp_path / "b", model_name="made", exits=[2], single=True)
