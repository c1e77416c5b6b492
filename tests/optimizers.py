"""Optimizers that tests name, so that steps by hand know them: SGD for the groups, Adam for the critics."""

from __future__ import annotations

SGD_AND_ADAM = {
    "critic": {"kind": "slim"},
    "rule": {"critic_loss": "mixed", "cross_entropy": 0.5},
    "groups": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4},
    "critics": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0},
    "critics_schedule": {"name": "constant"},
}
