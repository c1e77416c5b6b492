"""Tiny bundles for tests: ONNX graphs built node by node, which needs no torch, and their profile.

The image network has three groups: a convolution with ReLU; a flattening; a matrix product. Its exits cost
    group 1: 30, group 2: 20, group 3: 100; critic 1: 5, critic 2: 50    (FLOPs, and as many parameters)
so exit 1 costs 35, exit 2 100, exit 3 150. The text network has an embedding and two matrix products.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from anytime_lct.exits.bundle import Bundle, File, Manifest, Preprocessing, describe_file, write_manifest
from anytime_lct.exits.profile import Cost, Exit, Latency, Profile, Quality
from anytime_lct.exits.tasks import InputKind
from anytime_lct.runtime.session import AnytimeSession

GROUP_COSTS, CRITIC_COSTS = (30, 20, 100), (5, 50)
SYMBOLS = "ab é\n"


def quality(value: float) -> Quality:
    return Quality(value=value, low=value - 0.01, high=value + 0.01, loss=1.0, samples=100)


def make_profile(
    values: Sequence[float] = (0.80, 0.90, 0.95),
    groups: Sequence[int] = GROUP_COSTS,
    critics: Sequence[int] = CRITIC_COSTS,
    *,
    params: tuple[Sequence[int], Sequence[int]] | None = None,
    seconds: Sequence[float | None] | None = None,
    p_worse: Sequence[Sequence[float]] | None = None,
    metric: str = "accuracy",
    test: Sequence[float] | None = None,
    split: str = "validation",
) -> Profile:
    """Build a profile; test qualities default to the validation ones minus one hundredth."""
    N = len(values)
    group_params, critic_params = params or (groups, critics)
    tests = test or [value - 0.01 for value in values]
    return Profile.model_validate(
        {
            "model": "tiny",
            "data": "made",
            "metric": metric,
            "groups": tuple(Cost(flops=f, params=p) for f, p in zip(groups, group_params, strict=True)),
            "critics": tuple(Cost(flops=f, params=p) for f, p in zip(critics, critic_params, strict=True)),
            "exits": tuple(
                Exit(
                    index=i + 1,
                    validation=quality(values[i]),
                    test=quality(tests[i]),
                    latency=_latency(seconds, i),
                )
                for i in range(N)
            ),
            "p_worse": tuple(map(tuple, p_worse)) if p_worse else ((1.0,) * N,) * N,
            "split": split,
        }
    )


def _latency(seconds: Sequence[float | None] | None, i: int) -> Latency | None:
    measured = None if seconds is None else seconds[i]
    return None if measured is None else Latency(seconds=measured, engine="onnxruntime", machine="made")


# A graph: its nodes, its weights by name, and its output's rank. Input and output are "input" and "output".
Part = tuple[list[onnx.NodeProto], dict[str, np.ndarray], int]


def image_parts(
    seed: int = 0, size: int = 6, channels: int = 1, width: int = 4, classes: int = 3
) -> tuple[list[Part], list[Part]]:
    """Return the groups and critics of a network on (B, channels, size, size)."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    hidden = width * size * size
    conv = helper.make_node("Conv", ["input", "W"], ["z"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    groups: list[Part] = [
        ([conv, helper.make_node("Relu", ["z"], ["output"])], {"W": weights(width, channels, 3, 3)}, 4),
        ([helper.make_node("Flatten", ["input"], ["output"])], {}, 2),
        ([helper.make_node("MatMul", ["input", "W"], ["output"])], {"W": weights(hidden, classes)}, 2),
    ]
    critics: list[Part] = [
        (
            [
                helper.make_node("Flatten", ["input"], ["flat"]),
                helper.make_node("MatMul", ["flat", "W"], ["output"]),
            ],
            {"W": weights(hidden, classes)},
            2,
        ),
        ([helper.make_node("MatMul", ["input", "W"], ["output"])], {"W": weights(hidden, classes)}, 2),
    ]
    return groups, critics


def text_parts(seed: int = 0, symbols: int = len(SYMBOLS), units: int = 4) -> tuple[list[Part], list[Part]]:
    """Return the groups and critics of a network on numbers of symbols, (B, T)."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def product(outputs: int) -> Part:
        return [helper.make_node("MatMul", ["input", "W"], ["output"])], {"W": weights(units, outputs)}, 3

    embed: Part = (
        [helper.make_node("Gather", ["W", "input"], ["output"])],
        {"W": weights(symbols, units)},
        3,
    )
    return [embed, product(units), product(symbols)], [product(symbols), product(symbols)]


def write_image_bundle(
    folder: Path,
    *,
    only: str = "",
    served: tuple[int, ...] = (1, 2, 3),
    profile: Profile | None = None,
    size: int = 6,
    channels: int = 1,
    kind: InputKind = "image",
) -> Bundle:
    """Write a bundle of the image network, with `only` "exits" or "groups", or with both kinds of graphs.

    Of the `kind` array, it reads arrays of the images' shape.
    """
    groups, critics = image_parts(size=size, channels=channels)
    manifest = {
        "task": "classification",
        "input_shape": ("batch", channels, size, size),
        "input_dtype": "float32",
        "outputs": 3,
        "classes": ("zero", "one", "two"),
        "preprocessing": Preprocessing(
            kind="image",
            channels=channels,
            height=size,
            width=size,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
        )
        if kind == "image"
        else Preprocessing(kind=kind, shape=(channels, size, size)),
    }
    return _write(folder, groups, critics, manifest, profile or make_profile(), only, served)


def write_text_bundle(folder: Path, *, served: tuple[int, ...] = (1, 2, 3)) -> Bundle:
    """Write a bundle of the text network over `SYMBOLS`."""
    groups, critics = text_parts()
    manifest = {
        "task": "language-model",
        "input_shape": ("batch", "time"),
        "input_dtype": "int64",
        "outputs": len(SYMBOLS),
        "classes": tuple(SYMBOLS),
        "preprocessing": Preprocessing(kind="text", symbols=SYMBOLS),
    }
    return _write(folder, groups, critics, manifest, make_profile((2.5, 2.2, 2.0), metric="bpc"), "", served)


def store_answers(bundle: Bundle, error: float = 0.0) -> Bundle:
    """Store what the bundle answers on the CPU, or something else by an `error`, for the comparison of providers."""
    rng, session = np.random.default_rng(0), AnytimeSession(bundle)
    if bundle.manifest.task == "language-model":
        x = rng.integers(0, bundle.manifest.outputs, (3, 5), dtype=np.int64)
    else:
        x = rng.standard_normal((3, *map(int, bundle.manifest.input_shape[1:])), dtype=np.float32)
    logits = {f"exit_{i}": session.run_to(i, x).logits + np.float32(error) for i in bundle.manifest.served}
    np.savez(bundle.path / "parity.npz", input=x, **logits)
    rewrite(bundle.path, parity=describe_file(bundle.path / "parity.npz").model_dump())
    return Bundle.open(bundle.path)


def rewrite(folder: Path, **changes: object) -> None:
    """Change entries of a bundle's manifest without validation."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(folder: Path) -> None:
    """Change the last byte of the first group's graph, so that it differs from its checksum."""
    graph = folder / "group_1.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")


def update_checksum(folder: Path, kind: str, index: int) -> None:
    """Write the current checksum and size of a group or critic file to the manifest."""
    files = json.loads((folder / "manifest.json").read_text())[f"{kind}s"]
    key = index - 1 if isinstance(files, list) else str(index)
    files[key] = describe_file(folder / f"{kind}_{index}.onnx").model_dump()
    rewrite(folder, **{f"{kind}s": files})


def _write(
    folder: Path,
    groups: list[Part],
    critics: list[Part],
    manifest: dict[str, object],
    profile: Profile,
    only: str,
    served: tuple[int, ...],
) -> Bundle:
    folder.mkdir(parents=True, exist_ok=True)
    N, ids = len(groups), manifest["input_dtype"] == "int64"
    exits: dict[int, File] = {}
    group_files: list[File] = []
    critic_files: dict[int, File] = {}
    for i in range(1, N + 1):
        chain = groups[:i] + critics[i - 1 : i]
        if only != "groups" and i in served:
            exits[i] = _save(folder / f"exit_{i}.onnx", chain, "logits", ids)
        if only != "exits" and i <= max(served):
            group_files.append(
                _save(
                    folder / f"group_{i}.onnx",
                    groups[i - 1 : i],
                    "hidden" if i < N else "logits",
                    ids and i == 1,
                )
            )
            if i in served and i < N:
                critic_files[i] = _save(folder / f"critic_{i}.onnx", critics[i - 1 : i], "logits", False)
    profile.save(folder / "profile.json")
    facts = {
        "toolkit": "0.1.0",
        "model": "tiny",
        "num_groups": N,
        "opset": 18,
        "largest_difference": 0.0,
    } | manifest
    files = {"exits": exits, "groups": tuple(group_files), "critics": critic_files, "served": served}
    validated = Manifest.model_validate(facts | files | {"profile": describe_file(folder / "profile.json")})
    write_manifest(folder, validated)
    return Bundle.open(folder)


def _save(path: Path, parts: Sequence[Part], output: str, ids: bool) -> File:
    """Compose parts into one graph "input" -> `output` with free batch (and other) dimensions."""
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []
    last = "input"
    for k, (part_nodes, part_weights, _) in enumerate(parts):
        end = output if k == len(parts) - 1 else f"hidden_{k + 1}"
        names = {"input": last, "output": end}
        for node in part_nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [names.get(name, f"part_{k}_{name}") for name in node.input]
            copy.output[:] = [names.get(name, f"part_{k}_{name}") for name in node.output]
            nodes.append(copy)
        weights += [numpy_helper.from_array(value, f"part_{k}_{name}") for name, value in part_weights.items()]
        last = end
    rank = _input_rank(parts[0], ids)
    kind = TensorProto.INT64 if ids else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("input", kind, [None] * rank)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * parts[-1][2])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    path.write_bytes(content)
    return File(name=path.name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _input_rank(part: Part, ids: bool) -> int:
    if ids:
        return 2
    if part[0][0].op_type in ("Conv", "Flatten"):
        return 4
    return part[2]
