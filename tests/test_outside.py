"""Bundles whose graphs keep weights in other files are refused, wherever in the graph they are."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from bundles import update_checksum, write_image_bundle
from onnx import TensorProto, helper, numpy_helper

from anytime_lct.errors import BundleError
from anytime_lct.runtime.outside import has_outside_data
from anytime_lct.runtime.session import AnytimeSession

VALUES = np.arange(6, dtype=np.float32)


def outside(location="weights.bin"):
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[6], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "24")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model(*, initializer=(), nodes=(), functions=()):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [6]) for name in ("input", "output")]
    add = helper.make_node("Add", ["input", "secret"], ["output"])
    graph = helper.make_graph([*nodes, add], "g", values[:1], values[1:], list(initializer))
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)


def branch(tensor):
    value = helper.make_tensor_value_info("secret", TensorProto.FLOAT, [6])
    return helper.make_graph([helper.make_node("Constant", [], ["secret"], value=tensor)], "branch", [], [value])


def models(tensor):
    """Models that hold a tensor in every place where one may be."""
    constant = helper.make_node("Constant", [], ["secret"], value=tensor)
    condition = helper.make_node("If", ["c"], ["secret"], then_branch=branch(tensor), else_branch=branch(tensor))
    function = helper.make_function("d", "f", [], ["secret"], [constant], [helper.make_opsetid("", 18)])
    sparse = model()
    sparse.graph.sparse_initializer.add().values.CopyFrom(tensor)
    trained = model()
    trained.training_info.add().initialization.initializer.append(tensor)
    return {
        "initializer": model(initializer=[tensor]),
        "constant": model(nodes=[constant]),
        "branch": model(nodes=[condition]),
        "function": model(functions=[function]),
        "sparse": sparse,
        "training": trained,
    }


@pytest.mark.parametrize("name", models(outside()))
def test_weights_in_other_files_are_seen_wherever_they_are(name):
    assert has_outside_data(models(outside())[name].SerializeToString())
    assert not has_outside_data(models(numpy_helper.from_array(VALUES, "secret"))[name].SerializeToString())


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 30, b"\x3a\x7f", b"\x3b\x01"], ids=["empty", "endless", "cut", "kind"]
)
def test_what_is_no_graph_is_refused(content):
    with pytest.raises(ValueError, match=r"empty|end|kind"):
        has_outside_data(content)


def test_the_graphs_of_a_bundle_are_whole(tmp_path):
    write_image_bundle(tmp_path / "tiny")
    assert not any(has_outside_data(path.read_bytes()) for path in (tmp_path / "tiny").glob("*.onnx"))


@pytest.mark.parametrize("kind", ["file", "symlink", "hard link"])
def test_a_bundle_with_weights_in_other_files_is_not_run(tmp_path, kind):
    bundle = tmp_path / "tiny"
    write_image_bundle(bundle)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(VALUES.tobytes())
    link = bundle / "weights.bin"
    {"file": shutil.copy, "symlink": lambda a, b: b.symlink_to(a), "hard link": lambda a, b: b.hardlink_to(a)}[kind](
        secret, link
    )
    graph = bundle / "group_3.onnx"
    graph.write_bytes(model(initializer=[outside()]).SerializeToString())
    update_checksum(bundle, "group", 3)
    with pytest.raises(BundleError, match="names others"):
        AnytimeSession(bundle).warm()
