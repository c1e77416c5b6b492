"""The update rule of local critic training, equations (1)-(8) of Lee, Hsieh and Lee (IEEE TNNLS 2021).

    symbol      in the paper                                    here
    f_i, c_i    layer group and its local critic                f, c (c of the last group is the identity: None)
    h_i         output of f_i                                   h
    Z_i         output of c_i; Z_N = h_N                        Z
    l           loss function                                   loss, one number per sample: (B,)
    L_i         l(Z_i, y), (1); over time steps, (6)            L, shape (B,) or, scalar form, ()
    delta_i     dL_i/dh_i, (2); over time steps, (7)            delta, the shape of h
    w_i         weights of f_i, stepped along dL_i/dw_i         gradients in w.grad, (3), (8)
    L_ci        l(L_i, L_{i+1}), (5), the critic's own loss     matching

Two forms of (5). *Per sample* (the authors' code): L_ci is the mean over the minibatch of l(L_i^b, L_{i+1}^b), which
takes the critic a small backward pass of its own once L_{i+1} is known. *Scalar*: l(mean_b L_i, mean_b L_{i+1}), whose
gradient is one number times dL_i/d(critic), which (2) passes through anyway: one backward pass serves both.

The rule knows no optimizer, no recipe, no process. `descend` never waits for anything downstream; what it returns
learns as soon as L_{i+1} arrives, and neither changes what the other learns from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Form = Literal["per-sample", "scalar"]
Loss = Callable[[Tensor, Tensor], Tensor]  # (Z, y) -> (B,)
MATCHING: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth-l1": F.smooth_l1_loss}


@dataclass(frozen=True)
class Rule:
    """How a critic learns: the form of (5), its l, and the weight of L_i itself added to it (0: the paper's rule)."""

    form: Form = "per-sample"
    matching: str = "l1"
    cross_entropy: float = 0.0


@dataclass(frozen=True)
class Descent:
    """One group's part of a minibatch: h_i goes down, L_i goes up, `learn` waits for L_{i+1}."""

    h: Tensor
    L: Tensor
    learn: Callable[[Tensor], None] | None


def descend(f: nn.Module, c: nn.Module | None, x: Tensor, y: Tensor, loss: Loss, rule: Rule) -> Descent:
    """Run f_i and c_i on one minibatch and add dL_i/dw_i to the gradients of f_i, (1)-(3) and (6)-(8).

    `x` is h_{i-1}, without history. The critic's weights get nothing until `learn(L_{i+1})` is called, which then adds
    the gradient of (5), and only that, to theirs. h and L are detached, so nothing of the group's graph stays alive.
    """
    h = f(x)
    if c is None:
        L = loss(h, y)
        L.mean().backward()
        return Descent(h.detach(), _loss_sent(L, rule), None)

    cut = h.detach().requires_grad_()
    L = loss(c(cut), y)  # (1)
    if rule.form == "scalar":
        theta = [p for p in c.parameters() if p.requires_grad]
        delta, *dL = torch.autograd.grad(L.mean(), [cut, *theta])
        learn = _learn_scalar(theta, dL, L.detach().mean(), rule)
    else:
        (delta,) = torch.autograd.grad(L.mean(), cut, retain_graph=True)  # (2)
        learn = _learn_per_sample(c, L, rule)
    h.backward(delta)  # (3)
    return Descent(h.detach(), _loss_sent(L, rule), learn)


def _learn_per_sample(c: nn.Module, L: Tensor, rule: Rule) -> Callable[[Tensor], None]:
    theta = [p for p in c.parameters() if p.requires_grad]

    def learn(L_next: Tensor) -> None:
        L_c = MATCHING[rule.matching](L, L_next) + rule.cross_entropy * L.mean()  # (5)
        L_c.backward(inputs=theta)

    return learn


def _learn_scalar(theta: list[nn.Parameter], dL: list[Tensor], L: Tensor, rule: Rule) -> Callable[[Tensor], None]:
    def learn(L_next: Tensor) -> None:
        L_i = L.clone().requires_grad_()
        L_c = MATCHING[rule.matching](L_i, L_next) + rule.cross_entropy * L_i  # (5)
        (slope,) = torch.autograd.grad(L_c, L_i)  # for the L1 loss: sign(L_i - L_{i+1})
        for p, gradient in zip(theta, dL, strict=True):
            p.grad = slope * gradient if p.grad is None else p.grad + slope * gradient

    return learn


def _loss_sent(L: Tensor, rule: Rule) -> Tensor:
    """What goes up to critic i-1: B numbers, or in the scalar form one."""
    return L.detach() if rule.form == "per-sample" else L.detach().mean()
