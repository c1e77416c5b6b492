"""Execution providers: OpenVINO, really run, answers as the CPU does; one that is missing or wrong is one sentence."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from bundles import store_answers, write_image_bundle, write_text_bundle
from fake_engine import FakeServed

from anytime_lct.errors import BundleError, ProviderError
from anytime_lct.exits.budget import Budget
from anytime_lct.exits.bundle import Bundle
from anytime_lct.runtime import calibration, providers, timings
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.repository import Repository


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 1, 6, 6), dtype=np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return store_answers(write_image_bundle(tmp_path_factory.mktemp("providers") / "tiny"))


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> AnytimeSession:
    return AnytimeSession(bundle, provider="openvino")


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_openvino_answers_as_the_cpu(bundle: Bundle, session: AnytimeSession) -> None:
    cpu = AnytimeSession(bundle)
    assert (session.provider, cpu.provider) == ("openvino", "cpu")
    for batch in (1, 5, 1):
        x = images(batch, batch)
        for ours, theirs in zip(session.stream(x), cpu.stream(x), strict=True):
            close(ours.logits, theirs.logits)
        close(session.run(x, Budget(flops=100)).logits, cpu.run(x, Budget(flops=100)).logits)
        close(session.graphs.run("exit_2.onnx", x), cpu.graphs.run("exit_2.onnx", x))
    assert max(session.check_parity().values()) < 1e-4


def test_samples_stop_and_the_others_go_on(bundle: Bundle, session: AnytimeSession) -> None:
    ours, theirs = (each.run(images(20), min_confidence=0.9999) for each in (session, AnytimeSession(bundle)))
    assert set(ours.exits) == {1, 2, 3}
    np.testing.assert_array_equal(ours.exits, theirs.exits)
    close(ours.logits, theirs.logits)


def test_answers_stay_when_later_ones_come(session: AnytimeSession) -> None:
    first = session.run(images(2))
    copy = first.logits.copy()
    session.run(images(2, seed=1))
    np.testing.assert_array_equal(first.logits, copy)


def test_texts(tmp_path: Path) -> None:
    bundle = store_answers(write_text_bundle(tmp_path / "text"))
    x = np.array([[0, 2, 1], [1, 1, 3]])
    close(AnytimeSession(bundle, provider="openvino").run(x).logits, AnytimeSession(bundle).run(x).logits)


def test_many_threads(bundle: Bundle, session: AnytimeSession) -> None:
    inputs = [images(1 + seed % 3, seed) for seed in range(6)]
    expected, wrong = [AnytimeSession(bundle).run(x).logits for x in inputs], []

    def work(k: int) -> None:
        for n in [(k + step) % 6 for step in range(20)]:
            for logits in (session.run(inputs[n]).logits, session.graphs.run("exit_3.onnx", inputs[n])):
                if not np.allclose(logits, expected[n], rtol=1e-5, atol=1e-4):
                    wrong.append(n)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_session_travels_to_other_processes(session: AnytimeSession) -> None:
    x = images(2)
    expected = session.run(x).logits
    copy = pickle.loads(pickle.dumps(session))
    assert copy.provider == "openvino"
    close(copy.run(x).logits, expected)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if np.array_equal(session.run(x).logits, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_other_answers_than_those_stored_are_refused(tmp_path: Path) -> None:
    bundle = write_image_bundle(tmp_path / "tiny")
    with pytest.raises(BundleError, match=r"stored answers to compare with, got .* export it again"):
        AnytimeSession(bundle, provider="openvino")
    wrong = store_answers(bundle, error=0.01)
    with pytest.raises(ProviderError, match=r"exit 1 on openvino .* within .*, .* differ by 1\.0e-02; use another"):
        AnytimeSession(wrong, provider="openvino")
    (wrong.path / "parity.npz").write_bytes(b"no arrays")
    with pytest.raises(BundleError, match=r"cannot be read .* export the bundle again"):
        AnytimeSession(wrong).check_parity()


def test_a_provider_that_is_missing_is_one_sentence(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderError, match="of cpu, cuda, tensorrt, coreml, openvino, got 'gpu'; name one of them"):
        AnytimeSession(bundle, provider="gpu")
    with pytest.raises(ProviderError, match="got none; cpu is always there"):
        AnytimeSession(bundle, provider=[])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ProviderError, match=r"is there \(cpu.*\), got 'openvino'; install it, .*: pip install '\.\[openv"
    ):
        AnytimeSession(bundle, provider="openvino")
    assert AnytimeSession(bundle, provider=["openvino", "cpu"]).provider == "cpu"


def test_a_provider_of_onnxruntime_that_does_not_start_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime computes on the CPU then, and says so on stderr at most."""
    assert providers.CPU.is_there and providers.is_there(providers.ORT_CPU)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [*providers.ORT_CUDA])
    absent = [name for name in ("cuda", "coreml") if not providers.PROVIDERS[name].is_there]
    assert "coreml" in absent
    with pytest.raises(ProviderError, match="got 'coreml'; use the onnxruntime of macOS"):
        providers.choose("coreml")


def test_every_provider_has_timings_of_its_own(tmp_path: Path) -> None:
    bundle = store_answers(write_image_bundle(tmp_path / "tiny"))
    measured = calibration.calibrate(AnytimeSession(bundle, provider="openvino"), sizes=(1, 2), seconds=0.01)
    assert timings.save(measured, bundle) == tmp_path / "tiny.openvino.calibration.json"
    assert measured.runtime.startswith("openvino 20") and AnytimeSession(bundle).timing is None
    assert AnytimeSession(bundle, provider="openvino").timing is not None
    path = timings.timings_path(bundle.path)
    (tmp_path / "tiny.openvino.calibration.json").rename(path)
    assert AnytimeSession(bundle).timing is None  # of another provider


def test_a_server_takes_the_provider(bundle: Bundle) -> None:
    repository = Repository(bundle.path, FakeServed, provider=["coreml", "openvino", "cpu"])
    repository.start(repository.prepare())
    assert repository.find("tiny").bundle.session.provider in ("coreml", "openvino")
