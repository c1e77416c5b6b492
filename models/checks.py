"""What is checked of a network before it is cut: that its Python code is there, and that it answers with logits."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from anytime_lct.errors import ModelError
from anytime_lct.models.files import reason


class LogitsOf(nn.Module):
    """Answers with the logits of what a network returns, an object that has them; reads what the network reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def expect_python(name: str, model: nn.Module) -> None:
    """Raise ModelError for a network without its Python code, which can be neither cut nor exported."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"Expected the network '{name}' as written in Python, got one of torch.jit, which cannot be cut; return "
            f"the network from before torch.jit.script or torch.jit.trace."
        )
    if hasattr(model, "_orig_mod"):
        raise ModelError(
            f"Expected the network '{name}' uncompiled, got the result of torch.compile; return the network itself, "
            f"and set train.compile=true to compile it in training."
        )


def expect_logits(
    name: str,
    model: nn.Module,
    input_shape: tuple[int, ...],
    outputs: int,
    tokens: int | None = None,
    side: int | None = None,
) -> nn.Module:
    """Run the model once and return it; raises ModelError if it cannot read the inputs or gives no logits (B, outputs).

    A model that answers with an object with `logits`, as those of the library transformers do, is put into one that
    answers with these alone. `tokens` are as `networks.build` has them, `side` is that of the images that it is made
    for, if it is known.
    """
    is_text = tokens is None and len(input_shape) == 1
    dtype = torch.int64 if is_text or tokens else torch.float32
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            Z = model.eval()(torch.zeros(2, *input_shape, dtype=dtype))
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise ModelError(
            f"The network '{name}' cannot read inputs {tuple(input_shape)}: {reason(error)}; "
            f"{_remedy(model, input_shape, side)}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if isinstance(getattr(Z, "logits", None), Tensor):
        model, Z = LogitsOf(model), Z.logits
    if not isinstance(Z, Tensor):
        raise ModelError(
            f"Expected one tensor of logits from the network '{name}', got a {type(Z).__name__}; let its factory "
            f"return a module whose forward pass returns the logits alone."
        )
    expected = (2, *input_shape, outputs) if is_text else (2, outputs)
    if Z.shape != expected:
        raise ModelError(
            f"Expected logits of {outputs} classes from the network '{name}', {expected} for a batch of 2, got an "
            f"output of shape {tuple(Z.shape)}; {_other_shape(Z, outputs, len(expected))}."
        )
    if outputs > 1 and (Z >= 0).all() and torch.allclose(Z.sum(dim=-1), torch.ones(()), atol=1e-4):
        raise ModelError(
            f"Expected logits from the network '{name}', got probabilities, whose sum is 1; leave its softmax out, "
            f"which the loss and every exit take themselves."
        )
    return model


def _remedy(model: nn.Module, input_shape: tuple[int, ...], side: int | None) -> str:
    """Return what to do about a network that cannot read its inputs, by what is likely wrong."""
    try:
        inspect.signature(model.forward).bind(object())
    except TypeError:
        return "let its forward pass take one input, the images or the texts, and give all others defaults."
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if dtypes:
        return f"return it with weights of float32, not {' and '.join(map(str, dtypes))}, as by .float()."
    if side is not None and side not in input_shape:
        return f"it is made for images of {side}x{side} (of a folder: --set data.image_size={side})."
    return "change the network's options or the size of the inputs (of images in a folder: --set data.image_size=N)."


def _other_shape(Z: Tensor, outputs: int, dimensions: int) -> str:
    """Return what to do about an output of another shape than (B, outputs), or (B, T, outputs)."""
    if Z.dim() > dimensions and Z.shape[1] == outputs:
        return "let it pool its map, so that it answers once for an image"
    if outputs == 2 and Z.numel() == 2:
        return "let it return a logit for each of the two classes"
    return "reshape its output" if Z.shape[-1] == outputs else "let its factory take `outputs`"
