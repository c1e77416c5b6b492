"""Execution providers by name: what computes the answers, which package brings it, and which are there."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from anytime_lct.errors import ProviderError
from anytime_lct.runtime.backend import Backend
from anytime_lct.runtime.onnxruntime_backend import OnnxruntimeBackend, Providers, is_there

REPLACES = "onnxruntime-gpu in place of onnxruntime"
ORT_CPU: Providers = {"CPUExecutionProvider": {}}
# TF32 has the accuracy of three decimals.
ORT_CUDA: Providers = {"CUDAExecutionProvider": {"use_tf32": "0"}} | ORT_CPU


@dataclass(frozen=True)
class Provider:
    """A provider; `remedy` is what brings it, `device` where its buffers are.

    `onnxruntime` are the providers of onnxruntime that stand for it: the first computes what it can, the next the rest.
    None is the package OpenVINO.
    """

    name: str
    remedy: str
    onnxruntime: Providers | None
    device: str = "cpu"

    @property
    def is_there(self) -> bool:
        """Whether the provider is installed, and starts on this machine."""
        if self.onnxruntime is None:
            return importlib.util.find_spec("openvino") is not None
        return self.onnxruntime is ORT_CPU or is_there(self.onnxruntime)

    @property
    def version(self) -> str:
        """The software that computes, and its version."""
        package = "onnxruntime" if self.onnxruntime is not None else "openvino"
        return f"{package} {importlib.import_module(package).__version__}"

    def start(self, threads: int) -> Backend:
        """Return its backend, with so many threads inside a request."""
        if self.onnxruntime is not None:
            return OnnxruntimeBackend(self.onnxruntime, self.device, threads)
        from anytime_lct.runtime.openvino_backend import OpenVINOBackend

        return OpenVINOBackend(threads)


CPU = Provider("cpu", "install onnxruntime", ORT_CPU)
PROVIDERS = {
    each.name: each
    for each in (
        CPU,
        Provider("cuda", f"install {REPLACES}, on a machine with a GPU and CUDA", ORT_CUDA, "cuda"),
        Provider(
            "tensorrt",
            f"install {REPLACES}, and tensorrt, on a machine with a GPU and CUDA",
            {"TensorrtExecutionProvider": {}} | ORT_CUDA,
            "cuda",
        ),
        Provider("coreml", "use the onnxruntime of macOS", {"CoreMLExecutionProvider": {}} | ORT_CPU),
        Provider("openvino", "install it, in a checkout of anytime-lct, with: pip install '.[openvino]'", None),
    )
}


def choose(names: str | Sequence[str]) -> Provider:
    """Return a provider by its name or, of several names, the first that is there; raises ProviderError.

    >>> choose(["cuda", "cpu"]).name  # doctest: +SKIP
    'cpu'
    """
    names = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in names if name not in PROVIDERS]:
        raise ProviderError(f"Expected a provider of {', '.join(PROVIDERS)}, got {unknown[0]!r}; name one of them.")
    for name in names:
        if PROVIDERS[name].is_there:
            return PROVIDERS[name]
    if not names:
        raise ProviderError("Expected the name of a provider, got none; cpu is always there.")
    there = ", ".join(name for name, provider in PROVIDERS.items() if provider.is_there)
    raise ProviderError(f"Expected a provider that is there ({there}), got '{names[0]}'; {PROVIDERS[names[0]].remedy}.")
