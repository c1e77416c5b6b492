"""Exported graphs compared with torch: the same inputs must give the same logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anytime_lct.errors import ExportError
from anytime_lct.runtime.parity import allowed
from anytime_lct.runtime.states import names_of, with_inputs
from anytime_lct.task import Facts

Engine = Callable[[NDArray], Mapping[int, NDArray]]


def largest_difference(
    groups: Sequence[nn.Module], critics: Mapping[int, nn.Module], engines: Mapping[str, Engine], facts: Facts
) -> float:
    """Return the largest difference of any logit of any engine from torch's, over batches of 1, 3 and 64.

    An engine maps an input to the logits of its exits. Raises ExportError where a difference exceeds 1e-4 or, for
    logits beyond 10, 1e-5 of the largest: float32 has seven significant digits, not seven decimals.
    """
    largest = 0.0
    for x in samples(facts):
        expected = _exits(groups, critics, torch.from_numpy(x))
        for name, engine in engines.items():
            for i, logits in engine(x).items():
                largest = max(largest, _difference(f"{name} at exit {i}", logits, expected[i]))
    return largest


def largest_disagreement(engines: Sequence[Engine], facts: Facts) -> float:
    """Return the largest difference of any logit between engines, over the same batches; 0 if they agree to the bit.

    It is the check of int8 graphs, which cannot agree with torch: the chain of groups must equal the whole exits.
    """
    largest = 0.0
    for x in samples(facts):
        first, *others = (engine(x) for engine in engines)
        for other in others:
            largest = max(largest, *(float(np.abs(first[i] - other[i]).max()) for i in first))
    return largest


def _difference(what: str, logits: NDArray, expected: NDArray) -> float:
    if logits.shape != expected.shape:
        raise ExportError(f"Expected logits {expected.shape} from the {what}, got {logits.shape}; nothing was written.")
    difference = float(np.abs(logits - expected).max())
    bound = allowed(expected)
    if not difference <= bound:  # also for nan
        raise ExportError(
            f"Expected the {what} to agree with torch within {bound:.1e}, but logits of shape "
            f"{expected.shape} differ by {difference:.1e}; nothing was written."
        )
    return difference


def torch_engine(groups: Sequence[nn.Module], critics: Mapping[int, nn.Module]) -> Engine:
    """Return the network itself as an engine."""
    return lambda x: _exits(groups, critics, torch.from_numpy(x))


def store(path: Path, engine: Engine, exits: Sequence[int], facts: Facts) -> None:
    """Write inputs, and what an engine answers to them, that every execution provider is compared with."""
    _, x, *_ = samples(facts)
    logits = engine(x)
    arrays: dict[str, Any] = {"input": x} | {f"exit_{i}": logits[i] for i in exits}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def samples(facts: Facts) -> Iterator[NDArray]:
    """Yield the inputs of the comparison, always the same: normal noise, random tokens, or symbols of two lengths."""
    generator = np.random.default_rng(0)
    if facts.row.is_text:
        (length,) = facts.input_shape
        short = length // 3 + 1
        for batch, steps in ((1, length), (3, length), (3, short), (64, short)):
            yield generator.integers(0, facts.outputs, (batch, steps), dtype=np.int64)
    else:
        for batch in (1, 3, 64):
            shape = (batch, *facts.input_shape)
            if facts.tokens:
                yield generator.integers(0, facts.tokens, shape, dtype=np.int64)
            else:
                noise = generator.standard_normal(shape, dtype=np.float32)
                yield facts.raw(torch.from_numpy(noise)).numpy()


def reads_on(folder: Path, num_groups: int, critics: Sequence[int], facts: Facts) -> bool:
    """Return whether a text read in portions, from the states that portions before leave, is answered as in one."""
    if not facts.row.is_text:
        return False
    x, states = next(samples(facts)), dict[int, dict[str, NDArray]]()
    whole, continued = (chain_engine(folder, num_groups, critics, states=each) for each in (None, states))
    expected = whole(x)
    parts = [continued(part) for part in np.split(x, [1, 2, x.shape[1] // 2], axis=1) if part.size]
    try:
        for i, logits in expected.items():
            _difference(f"text in portions at exit {i}", np.concatenate([part[i] for part in parts], axis=1), logits)
    except ExportError:
        return False
    return True


def chain_engine(
    folder: Path, num_groups: int, critics: Sequence[int], states: dict[int, dict[str, NDArray]] | None = None
) -> Engine:
    """Open the groups and critics of a folder as an engine that runs them one after another.

    With `states`, which it changes, every part goes on from those of the run before.
    """
    fed = states is not None
    group_sessions = [_open(folder / f"group_{i}.onnx", fed=fed) for i in range(1, num_groups + 1)]
    critic_sessions = {i: _open(folder / f"critic_{i}.onnx", fed=fed) for i in critics}

    def run(x: NDArray) -> dict[int, NDArray]:
        answers = {}
        for i, group in enumerate(group_sessions, start=1):
            x = _run(group, x, states)
            if i in critic_sessions:
                answers[i] = _run(critic_sessions[i], x, states)
        return answers if num_groups in critic_sessions else answers | {num_groups: x}

    return run


def exits_engine(folder: Path, exits: Sequence[int]) -> Engine:
    """Return an engine that opens and runs the whole exits of a folder one at a time."""

    def run(x: NDArray) -> dict[int, NDArray]:
        return {i: _run(_open(folder / f"exit_{i}.onnx"), x) for i in exits}

    return run


def single_file_engine(path: Path, exits: Sequence[int]) -> Engine:
    """Open the single file as an engine that reaches each exit by thresholds which skip those before it.

    The engine raises ExportError where another exit answers.
    """
    session = _open(path)

    def run(x: NDArray) -> dict[int, NDArray]:
        answers = {}
        for k, i in enumerate(exits):
            thresholds = np.where(np.arange(len(exits) - 1) < k, 2.0, 0.0).astype(np.float32)
            logits, exit_ = session.run(None, {"input": x, "thresholds": thresholds})
            if int(np.asarray(exit_)) != i:
                raise ExportError(f"Expected exit {i} of '{path.name}' to answer, got {exit_}; report this as a bug.")
            answers[i] = np.asarray(logits)
        return answers

    return run


def _exits(groups: Sequence[nn.Module], critics: Mapping[int, nn.Module], x: Tensor) -> dict[int, NDArray]:
    answers = {}
    with torch.no_grad():
        for i, group in enumerate(groups, start=1):
            x = group(x)
            if i in critics:
                answers[i] = critics[i](x).numpy()
    return answers if len(groups) in critics else answers | {len(groups): x.numpy()}


def _open(path: Path, *, fed: bool = False) -> ort.InferenceSession:
    """Open a graph; with `fed`, the states of its recurrent layers are inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # onnxruntime counts cores that a container does not have
    options.log_severity_level = 4  # errors are raised; nothing is printed
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle sessions would occupy the cores
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if fed and (states := names_of([each.name for each in session.get_outputs()])):
        content = with_inputs(path.read_bytes(), states)
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session


def _run(session: ort.InferenceSession, x: NDArray, states: dict[int, dict[str, NDArray]] | None = None) -> NDArray:
    last = states.get(id(session), {}) if states is not None else {}
    output, *following = map(np.asarray, session.run(None, {"input": x} | last))
    if states is not None:
        names = names_of([each.name for each in session.get_outputs()])
        states[id(session)] = dict(zip(names, following, strict=True))
    return output
