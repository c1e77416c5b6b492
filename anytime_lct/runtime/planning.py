"""Which exit answers a request, where its samples stop before it, and why an answer goes no deeper."""

from __future__ import annotations

from typing import NamedTuple

from anytime_lct.errors import BudgetError
from anytime_lct.exits.budget import DEFAULT_ASK, UNLIMITED, Ask, Budget, Flops, StopReason, in_flops
from anytime_lct.exits.bundle import Bundle
from anytime_lct.exits.profile import Latency, Profile
from anytime_lct.exits.selector import fitting, select
from anytime_lct.exits.thresholds import Thresholds
from anytime_lct.runtime.timing import Timing
from anytime_lct.runtime.walk import StoppingRule

MAX_CACHED_BUDGETS = 256


class Plan(NamedTuple):
    """How deep a request goes at most, which samples stop earlier, and why an answer there stops."""

    deepest: int
    stopping: StoppingRule | None
    stop_reason: StopReason


class Planner:
    """Plans requests by a bundle's profile and rules; `timing` are this machine's times, where they were measured."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._profile, self._served = bundle, bundle.profile, bundle.manifest.served
        self._exit_of: dict[Budget, int] = {}

    def choose(self, budget: Budget, timing: Timing | None) -> int:
        """Return the most accurate served exit in the budget; raises NothingFitsError and BudgetError."""
        if budget.exit is not None and budget.exit > self._profile.num_groups:
            served = ", ".join(map(str, self._served))
            raise BudgetError(f"Expected an exit among {served}, got {budget.exit}; name one of them.")
        if (exit := self._exit_of.get(budget)) is None:
            exit = select(self._profile_for(budget, timing), budget, exits=self._served).exit
            if len(self._exit_of) >= MAX_CACHED_BUDGETS:
                self._exit_of.clear()
            if budget.latency is None:  # timings change
                self._exit_of[budget] = exit
        return exit

    def plan(self, ask: Ask, timing: Timing | None) -> Plan:
        """Return how deep a request goes, and where its samples stop; raises NothingFitsError and BudgetError."""
        rule = ask.rule if ask.mean_flops is None else self.rule(ask.mean_flops)
        deepest = self._deepest(ask, rule, timing)
        if rule is not None:
            at, measure = {i: threshold for i, threshold in rule.at.items() if i < deepest}, rule.measure
        elif ask.min_confidence is not None:
            at, measure = (
                dict.fromkeys((i for i in self._served if i < deepest), float(ask.min_confidence)),
                ask.measure,
            )
        else:
            return Plan(deepest, None, self.stop_reason(deepest, ask))
        stopping = StoppingRule.of(at, measure, self._profile)
        return Plan(deepest, stopping, self.stop_reason(deepest, ask))

    def rule(self, mean_flops: Flops) -> Thresholds:
        """Return the bundle's rule for this mean cost per sample; raises NothingFitsError and BudgetError."""
        flops = in_flops(mean_flops, self._profile.cost(self._profile.num_groups).flops)
        if self._bundle.thresholds is None:
            raise BudgetError(
                f"Expected a bundle with rules for a mean budget, got '{self._bundle.path}' without; search them with: "
                f"anytime-lct thresholds RUN --mean-flops {flops:.4g}, and export again."
            )
        return self._bundle.thresholds.within(flops)

    def _deepest(self, ask: Ask, rule: Thresholds | None, timing: Timing | None) -> int:
        """The deepest exit of a request: the one that it names, the deepest or the best in its budget, or a rule's."""
        exit = ask.budget.exit
        if ask.mode == "fixed" and exit is not None and ask.budget.names_exit:
            if exit not in self._served:
                served = ", ".join(map(str, self._served))
                raise BudgetError(f"Expected a fixed exit among those served, {served}, got {exit}; name one of them.")
            return exit
        if ask.min_confidence is not None:  # samples go on until they are confident, past the most accurate exit too
            return max(fitting(self._profile_for(ask.budget, timing), ask.budget, self._served))
        if rule is None:
            return self.choose(ask.budget, timing)
        return max(rule.at) if ask.budget == UNLIMITED else min(max(rule.at), self.choose(ask.budget, timing))

    def stop_reason(self, exit: int, ask: Ask = DEFAULT_ASK) -> StopReason:
        """Why an answer goes no deeper than its planned exit: whether any deeper one is better, or could be sure."""
        is_last = exit == self._served[-1] or (ask.min_confidence is None and exit == self.choose(UNLIMITED, None))
        return "last" if is_last else "budget"

    def _profile_for(self, budget: Budget, timing: Timing | None) -> Profile:
        """The profile that a budget is compared with: for latencies those of this machine, where they were measured."""
        if budget.latency is None or timing is None:
            return self._profile
        exits = [
            each.model_copy(
                update={
                    "latency": Latency(seconds=timing.to_exit(each.index, 1), engine="onnxruntime", machine="")
                    if each.index in self._served
                    else None
                }
            )
            for each in self._profile.exits
        ]
        return self._profile.model_copy(update={"exits": tuple(exits)})
