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
gradient is one number times dL_i/d(critic), which (2) computes anyway: one backward pass gives both.

A critic may also minimise L_i itself: added to (5) (*mixed*), or alone (*cross-entropy*), which needs no L_{i+1} and
is known as decoupled greedy learning (Belilovsky et al., ICML 2020).

The rule knows no optimizer, no recipe, no process. `descend` is the whole rule for one group. A trainer whose groups
run side by side calls its parts one by one, because the neighbours' inputs are known before the work is done: h_i after
f_i, L_i after `LocalLoss`. The only downstream value a group waits for is L_{i+1}, which `learn` may get much later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from anytime_lct.recipes.recipe import CriticLoss, Form, Matching

Loss = Callable[[Tensor, Tensor], Tensor]  # (Z, y) -> (B,)
MATCHING: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth-l1": F.smooth_l1_loss}


@dataclass(frozen=True)
class Rule:
    """How a critic learns: the form of (5), its l, and what is minimised.

    `critic_loss` is (5) alone (paper), (5) + `cross_entropy` x L_i (mixed), or L_i alone (cross-entropy).
    """

    form: Form = "per-sample"
    matching: Matching = "l1"
    critic_loss: CriticLoss = "paper"
    cross_entropy: float = 1.0

    @property
    def one_pass(self) -> bool:
        """Whether the gradient of L_ci is a number times dL_i/d(critic), so that one backward pass gives both."""
        return self.form == "scalar" or self.critic_loss == "cross-entropy"

    def of(self, L: Tensor, L_next: Tensor) -> Tensor:
        """Return L_ci, (), of L_i and L_{i+1}, both (B,) or both ()."""
        if self.critic_loss == "cross-entropy":
            return L.mean()
        matching = MATCHING[self.matching](L, L_next)  # (5)
        return matching if self.critic_loss == "paper" else matching + self.cross_entropy * L.mean()


class LocalLoss:
    """One group's part of a minibatch, (1): send `h` down and `L` up, then `descend`, then `learn` with L_{i+1}.

    The argument `h` is the output of f_i with its graph; the attributes `h` and `L` have none. The graph of f_i is
    freed by `descend`, that of the critic by `learn`.
    """

    def __init__(self, h: Tensor, c: nn.Module | None, y: Tensor, loss: Loss, rule: Rule) -> None:
        self._f_output: Tensor | None
        self.h, self._f_output, self._c, self._rule = h.detach(), h, c, rule
        self._cut = h.detach().requires_grad_()
        self._L = loss(h if c is None else c(self._cut), y)  # (1)
        self.L = self._L.detach() if rule.form == "per-sample" else self._L.detach().mean()

    def descend(self) -> None:
        """Add dL_i/dw_i to the gradients of f_i, (2) and (3); the critic's gradients stay unchanged."""
        h, self._f_output = self._f_output, None
        if h is None:
            return
        if self._c is None:
            self._L.mean().backward()
            return
        if self._rule.one_pass:
            delta, *self._dL = torch.autograd.grad(self._L.mean(), [self._cut, *_weights(self._c)])  # (2)
        else:
            (delta,) = torch.autograd.grad(self._L.mean(), self._cut, retain_graph=True)  # (2)
        gradient = [delta]
        del delta
        _Handed.apply(h, gradient).backward()  # (3)

    def learn(self, L_next: Tensor, L: Tensor | None = None) -> None:
        """Add the gradient of (5), and only that, to the critic's gradients; after `descend`.

        `L` replaces L_i in the scalar form where the minibatch is one share of a joint one: it is the joint mean.
        """
        if self._c is None:
            return
        if not self._rule.one_pass:
            self._rule.of(self._L, L_next).backward(inputs=_weights(self._c))  # (5)
            return
        gradients = self._dL
        if self._rule.critic_loss != "cross-entropy":
            L_i = (self.L if L is None else L).mean().requires_grad_()
            (slope,) = torch.autograd.grad(self._rule.of(L_i, L_next.mean()), L_i)  # (5); for L1 sign(L_i - L_{i+1})
            gradients = [slope * gradient for gradient in gradients]
        for p, gradient in zip(_weights(self._c), gradients, strict=True):
            p.grad = gradient if p.grad is None else p.grad + gradient


class _Handed(torch.autograd.Function):
    """h.backward(gradient) that frees the gradient as soon as the graph of h has used it: one h less at peak."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, gradient: list[Tensor]) -> Tensor:
        ctx.gradient = gradient
        return h.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient.pop(), None


def descend(f: nn.Module, c: nn.Module | None, x: Tensor, y: Tensor, loss: Loss, rule: Rule) -> LocalLoss:
    """Run f_i and c_i on one minibatch and add dL_i/dw_i to the gradients of f_i, (1)-(3) and (6)-(8).

    `x` is h_{i-1}, without history. The critic's weights get their gradient when `learn(L_{i+1})` is called.
    """
    local_loss = LocalLoss(f(x), c, y, loss, rule)
    local_loss.descend()
    return local_loss


def _weights(c: nn.Module) -> list[nn.Parameter]:
    return [p for p in c.parameters() if p.requires_grad]
