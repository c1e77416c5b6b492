"""Chained groups answer as whole exits do, pay only for what they run, and never disturb one another."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from bundles import make_profile, update_checksum, write_image_bundle, write_text_bundle
from programs import run
from test_policy import made_timings

from anytime_lct.errors import BudgetError, BundleError, InputError, NothingFitsError
from anytime_lct.exits.budget import Ask, Budget
from anytime_lct.exits.bundle import Bundle
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.backend import LoadedGraph
from anytime_lct.runtime.chain import ChainPool
from anytime_lct.runtime.graphs import Graphs
from anytime_lct.runtime.session import AnytimeSession


def _images(batch: int, seed: int = 0, size: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 1, size, size)).astype(np.float32)


def _whole(bundle: Bundle, exit: int, x: np.ndarray) -> np.ndarray:
    graph = ort.InferenceSession(bundle.exit(exit), providers=["CPUExecutionProvider"])
    return np.asarray(graph.run(None, {"input": x})[0])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_image_bundle(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> AnytimeSession:
    return AnytimeSession(bundle)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3, 1])
def test_run_and_stream_equal_whole_exits(bundle: Bundle, batch: int, threads: int) -> None:
    session, x = AnytimeSession(bundle.path, threads), _images(batch)
    for _ in range(2):  # the first time the buffers are made, the second time they are used again
        streamed = list(session.stream(x))
        assert [(answer.exit, answer.flops) for answer in streamed] == [(1, 35), (2, 105), (3, 205)]
        for exit, flops in ((1, 35), (2, 100), (3, 150)):
            answer, expected = session.run(x, Budget(flops=flops)), _whole(bundle, exit, x)
            assert (answer.exit, answer.flops) == (exit, flops)
            np.testing.assert_allclose(answer.logits, expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(answer.logits, streamed[exit - 1].logits)


def test_text_answers_every_character(tmp_path: Path) -> None:
    bundle = write_text_bundle(tmp_path)
    session = AnytimeSession(bundle)
    for x in (np.array([[0, 1, 2]]), np.array([[4, 3, 2, 1], [0, 0, 0, 0]], dtype=np.uint8)):
        for answer in session.stream(x):
            assert answer.logits.shape == (*x.shape, 5)
            np.testing.assert_allclose(answer.logits, _whole(bundle, answer.exit, x.astype(np.int64)), rtol=1e-5)


def test_answers(session: AnytimeSession) -> None:
    answer = session.run(_images(4))
    assert (answer.exit, answer.logits.dtype, answer.logits.shape) == (3, np.float32, (4, 3))
    powers = np.exp(answer.logits.astype(np.float64))
    np.testing.assert_allclose(answer.probabilities, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(answer.classes, answer.logits.argmax(axis=1))
    large = Answer(1, np.array([[1000.0, 0.0]], dtype=np.float32), 1, np.array([1]))
    np.testing.assert_array_equal(large.probabilities, [[1.0, 0.0]])
    with pytest.raises(FrozenInstanceError):
        answer.exit = 1  # pyright: ignore


def test_budgets(session: AnytimeSession) -> None:
    x = _images(1)
    exits = [session.run(x, budget).exit for budget in (None, Budget(exit=2), Budget(flops=149), Budget(params=35))]
    assert exits == [3, 2, 2, 1]
    for _ in range(2):
        with pytest.raises(NothingFitsError, match="35 FLOPs"):
            session.run(x, Budget(flops=34))


def test_a_deeper_exit_that_is_worse_is_not_chosen(tmp_path: Path) -> None:
    session = AnytimeSession(write_image_bundle(tmp_path, profile=make_profile((0.8, 0.95, 0.9))))
    assert session.run(_images(1)).exit == 2


def test_only_served_exits_answer(tmp_path: Path) -> None:
    bundle = write_image_bundle(tmp_path, served=(2, 3))
    session, x = AnytimeSession(bundle), _images(2)
    assert [(answer.exit, answer.flops) for answer in session.stream(x)] == [(2, 100), (3, 200)]
    with pytest.raises(NothingFitsError, match="exit 2"):
        session.run(x, Budget(exit=1))
    with pytest.raises(InputError, match="served"):
        session.run_to(1, x)


def test_without_the_main_network(tmp_path: Path) -> None:
    session = AnytimeSession(write_image_bundle(tmp_path, served=(1,)))
    assert [answer.exit for answer in session.stream(_images(1))] == [1]
    assert session.run(_images(1)).exit == 1


def test_whole_exits_alone_cannot_stream(tmp_path: Path, bundle: Bundle) -> None:
    session, x = AnytimeSession(write_image_bundle(tmp_path, only="exits")), _images(2)
    np.testing.assert_array_equal(session.run(x, Budget(flops=100)).logits, _whole(bundle, 2, x))
    with pytest.raises(BundleError, match="without --only exits"):
        session.stream(x)


def test_groups_alone_do_both(tmp_path: Path, bundle: Bundle) -> None:
    session, x = AnytimeSession(write_image_bundle(tmp_path, only="groups")), _images(2)
    for answer in session.stream(x):
        np.testing.assert_allclose(answer.logits, _whole(bundle, answer.exit, x), rtol=1e-5, atol=1e-5)
    assert session.run(x).exit == 3


def test_stopping_early_loads_nothing_deeper(bundle: Bundle) -> None:
    session = AnytimeSession(bundle)
    stream = session.stream(_images(1))
    assert session.graphs.loaded == set()
    assert next(stream).exit == 1
    stream.close()  # pyright: ignore
    assert session.graphs.loaded == {"group_1.onnx", "critic_1.onnx"}
    session.run(_images(1), Budget(flops=100))
    assert session.graphs.loaded == {"group_1.onnx", "critic_1.onnx", "group_2.onnx", "critic_2.onnx"}


def test_a_stream_runs_every_graph_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, names = [], {}
    load, original = Graphs.load, ort.InferenceSession.run_with_iobinding

    def named(graphs: Graphs, name: str) -> LoadedGraph:
        graph = load(graphs, name)
        names[id(graph.session)] = Path(name).stem
        return graph

    def spy(graph: ort.InferenceSession, *arguments: object) -> None:
        ran.append(names[id(graph)])
        original(graph, *arguments)  # pyright: ignore

    monkeypatch.setattr(Graphs, "load", named)
    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", spy)
    session = AnytimeSession(bundle)
    for _ in range(2):
        ran.clear()
        stream, steps = session.stream(_images(1)), []
        for _ in stream:
            steps.append(tuple(ran))
            ran.clear()
        assert steps == [("group_1", "critic_1"), ("group_2", "critic_2"), ("group_3",)]
    session.run(_images(1), Budget(flops=100))
    assert ran == ["group_1", "group_2", "critic_2"]


def test_answers_outlive_later_steps_and_changed_inputs(session: AnytimeSession) -> None:
    x = _images(2)
    expected = [answer.logits.copy() for answer in session.stream(x)]
    stream = session.stream(x)
    x[:] = 0
    answers = list(stream)
    session.run(np.ones_like(x))
    for answer, logits in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer.logits, logits)


def test_interleaved_streams(session: AnytimeSession) -> None:
    inputs = [_images(2, seed) for seed in range(4)]
    expected = [[answer.logits for answer in session.stream(x)] for x in inputs]
    streams = [session.stream(x) for x in inputs]
    for step in range(3):
        for k, stream in enumerate(streams):
            np.testing.assert_array_equal(next(stream).logits, expected[k][step])
            session.run(inputs[(k + 1) % 4])


def test_many_threads_on_one_session(bundle: Bundle) -> None:
    session = AnytimeSession(bundle)
    inputs = [_images(1 + seed % 3, seed) for seed in range(8)]
    expected = [[_whole(bundle, exit, x) for exit in (1, 2, 3)] for x in inputs]
    start, wrong = threading.Barrier(8), []

    def work(k: int) -> None:
        start.wait()
        for turn in range(40):
            n = (k + turn) % 8
            for answer in session.stream(inputs[n]):
                if not np.allclose(answer.logits, expected[n][answer.exit - 1], rtol=1e-4, atol=1e-4):
                    wrong.append((n, answer.exit))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert len(session.graphs.loaded) == 5


@pytest.mark.parametrize("batch", [1, 5])
def test_the_bytes_of_buffers_are_known_before_they_are_used(bundle: Bundle, batch: int) -> None:
    """A walk that asks every critic has every buffer: the input, what crosses the cuts, and all logits."""
    session = AnytimeSession(bundle)
    assert session.buffer_bytes(_images(batch)) == 0
    session.warm()
    predicted = session.buffer_bytes(_images(batch))
    for _ in session.stream(_images(batch)):
        pass
    assert dict(session.chains.spare)[_images(batch).shape] == predicted > _images(batch).nbytes


def test_graphs_of_a_folder_that_was_replaced_are_refused(tmp_path: Path) -> None:
    session, x = AnytimeSession(write_image_bundle(tmp_path / "b")), _images(2)
    first = session.run_to(1, x)
    (tmp_path / "b").rename(tmp_path / "old")
    with pytest.raises(BundleError, match=r"group_2\.onnx' cannot be read: No such file"):
        session.run_to(2, x)
    other = write_image_bundle(tmp_path / "b", size=7)
    with pytest.raises(BundleError, match=r"group_3\.onnx' was replaced after the bundle was opened; open it again"):
        session.graphs.load("group_3.onnx")
    np.testing.assert_array_equal(session.run_to(1, x).logits, first.logits)
    assert AnytimeSession(other).run(_images(2, size=7)).exit == 3


def test_a_session_travels_to_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image_bundle(tmp_path / "b")
    session, x = AnytimeSession("b", threads=2), _images(2)
    session.use_timings(made_timings((0.001, 0.001, 0.001), {1: 1e-9, 2: 1e-9}))
    session.run(x)
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(session))
    assert (copy.threads, copy.choose(Budget(latency=0.0025))) == (2, 2)
    np.testing.assert_array_equal(copy.run(x).logits, session.run(x).logits)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_session_answers_in_a_forked_process(bundle: Bundle, threads: int) -> None:
    session, x = AnytimeSession(bundle, threads=threads), _images(50)
    expected = session.run(x).logits
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a graph of the parent would wait for threads that are not here
        os._exit(0 if np.array_equal(session.run(x).logits, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(session.run(x).logits, expected)


def test_few_buffers_are_kept(session: AnytimeSession) -> None:
    for batch in range(1, 40):
        session.run(_images(batch))
    assert len(session.chains.spare) == 16


def test_buffers_that_are_kept_have_a_bound_in_bytes(bundle: Bundle) -> None:
    session = AnytimeSession(bundle)
    session.run(_images(1))
    (_, one) = session.chains.spare[-1]
    session.chains = ChainPool(session.graphs, session.manifest, spare_bytes=17 * one)
    for batch in (2, 3, 4, 5, 6, 7):
        session.run(_images(batch))
    assert [shape[0] for shape, _ in session.chains.spare] == [6, 7]
    session.run(_images(30))
    assert session.chains.spare == []


LARGE_BATCH = """
import os, sys
from pathlib import Path
import numpy as np
from anytime_lct.runtime.session import AnytimeSession

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

session, shape = AnytimeSession(sys.argv[1]), [int(size) for size in sys.argv[2:]]
session.warm()
session.run(np.zeros([1, *shape], np.float32))
before, large = resident(), np.zeros([60_000, *shape], np.float32)
session.run(large)
assert [rows[0] for rows, _ in session.chains.spare] == [1]
session.run(np.zeros([1, *shape], np.float32))
print(resident() - before, session.buffer_bytes(large))
"""


def test_the_memory_of_a_large_batch_is_given_back(bundle: Bundle) -> None:
    """In a process of its own, whose allocator no training has told to keep freed memory."""
    sizes = map(str, _images(1).shape[1:])
    arguments = [sys.executable, "-c", LARGE_BATCH, str(bundle.path), *sizes]
    grown, buffers = map(int, subprocess.run(arguments, check=True, capture_output=True, timeout=60).stdout.split())
    assert grown < buffers / 4 and buffers > 1 << 26


def test_why_an_answer_went_no_deeper(tmp_path: Path) -> None:
    profile = make_profile(values=(0.8, 0.9, 0.85))  # the last is not the best
    session = AnytimeSession(write_image_bundle(tmp_path, profile=profile))
    for budget, exit, stopped in ((None, 2, "last"), (Budget(flops=1e9), 2, "last"), (Budget(exit=1), 1, "budget")):
        answer = session.run(_images(1), budget)
        assert (answer.exit, answer.stopped) == (exit, stopped)


def test_what_a_latency_allows_follows_the_timings(tmp_path: Path) -> None:
    session = AnytimeSession(write_image_bundle(tmp_path))
    session.use_timings(made_timings((0.001, 0.001, 0.001), {1: 1e-9, 2: 1e-9}))
    assert session.choose(Budget(latency=0.0035)) == 3
    for _ in range(50):
        session.timing.observe_group(3, 1, 0.01)
    assert session.choose(Budget(latency=0.0035)) == 2


def test_loading_a_graph_is_no_timing(bundle: Bundle) -> None:
    session = AnytimeSession(bundle)
    session.use_timings(made_timings((1e-9, 1e-9, 1e-9), {1: 1e-9, 2: 1e-9}))
    session.run(_images(1), Budget(exit=1))
    assert session.timing.group(1, 1) == 1e-9
    session.warm()
    assert len(session.graphs.loaded) == 5
    session.run(_images(1), Budget(exit=1))
    assert session.timing.group(1, 1) > 1e-9


def test_inputs_are_converted(session: AnytimeSession) -> None:
    x = _images(3)
    expected = session.run(x).logits
    for same in (
        x.astype(np.float64),
        x.astype(">f4"),
        np.asfortranarray(x),
        np.repeat(x, 2, axis=3)[..., ::2],
    ):
        np.testing.assert_array_equal(session.run(same).logits, expected)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        ([[1.0]], "got a list"),
        (
            np.zeros((1, 28, 28), np.float32),
            r"Expected an input of shape \(batch, 1, 6, 6\), got \(1, 28, 28\)",
        ),
        (np.zeros((1, 1, 6, 7), np.float32), r"\(1, 1, 6, 7\)"),
        (np.zeros((0, 1, 6, 6), np.float32), "at least one"),
        (np.zeros((1, 1, 6, 6), np.uint8), "uint8"),
        (np.zeros((1, 1, 6, 6), np.float16), "float16"),
        (np.zeros((1, 1, 6, 6), object), "object"),
        (np.zeros((1, 1, 6, 6), complex), "complex"),
        (np.full((1, 1, 6, 6), np.nan, np.float32), "NaN"),
        (np.full((1, 1, 6, 6), -np.inf, np.float32), "infinity"),
        (np.full((1, 1, 6, 6), 1e300), "infinity"),
    ],
)
def test_wrong_images(session: AnytimeSession, x: np.ndarray, says: str) -> None:
    for ask in (session.run, session.stream):
        with pytest.raises(InputError, match=says) as caught:
            ask(x)
        assert "\n" not in str(caught.value)


def test_large_finite_images_are_let_through(session: AnytimeSession) -> None:
    assert session.check(np.full((1, 1, 6, 6), 3e38, np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.array([[0, 5]]), "0 to 4, got 5"), (np.array([[-1, 0]]), "got -1"),
        (np.array([0, 1]), "batch, time"),
        (np.zeros((1, 0), int), "at least one"), (np.array([[0.0, 1.0]]), "float64"),
        (np.array([[True]]), "bool"),
        (np.array([[2**63]], dtype=np.uint64), "got 9223372036854775808"),
    ],
)  # fmt: skip
def test_wrong_texts(tmp_path: Path, x: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        AnytimeSession(write_text_bundle(tmp_path)).run(x)


def test_unusable_graphs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_image_bundle(tmp_path, only="groups")
    (tmp_path / "group_1.onnx").write_bytes(b"no graph")
    update_checksum(tmp_path, "group", 1)
    with pytest.raises(BundleError, match=r"group_1.onnx' is no ONNX graph"):
        AnytimeSession(tmp_path).run(_images(1))
    write_image_bundle(tmp_path, only="groups")
    (tmp_path / "critic_1.onnx").write_bytes((tmp_path / "group_1.onnx").read_bytes())
    update_checksum(tmp_path, "critic", 1)
    with pytest.raises(BundleError, match=r"critic_1.onnx' cannot run"):
        AnytimeSession(tmp_path).run(_images(1), Budget(flops=35))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("threads", [0, -1, 1.0, True])
def test_threads(bundle: Bundle, threads: int) -> None:
    with pytest.raises(InputError, match="threads"):
        AnytimeSession(bundle, threads)


def test_a_device_needs_no_torch(tmp_path: Path) -> None:
    write_image_bundle(tmp_path)
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "fvcore", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np
from anytime_lct.runtime import AnytimeSession
stream = AnytimeSession({str(tmp_path)!r}).stream(np.zeros((1, 1, 6, 6), np.float32))
print([answer.exit for answer in stream])
print(sorted({{"PIL", "typer", "rich"}} & set(sys.modules)))
"""
    child = run([sys.executable, "-c", program], 60)
    assert (child.stdout, child.stderr) == ("[1, 2, 3]\n[]\n", "")


@pytest.mark.parametrize(
    ("ask", "keywords"),
    [
        (Ask(), {"timeout": 1.0}),
        (Ask(timeout=1.0), {"min_confidence": 0.5}),
        (Ask(), {"budget": Budget(flops=50)}),
        (Budget(flops=50), {"budget": Budget(flops=100)}),
    ],
)
def test_an_ask_and_keywords_beside_it_are_refused(tmp_path: Path, ask: Ask | Budget, keywords: dict) -> None:
    session = AnytimeSession(write_image_bundle(tmp_path / "bundle"))
    with pytest.raises(BudgetError, match="Expected an Ask, or keywords, got both"):
        session.run(np.zeros((1, 1, 6, 6), np.float32), ask, **keywords)
