"""What engines say before a search begins: who is suspected beyond those that the emulation blames.

Where an engine is wrong with all suspects in FP32, a yes or no a build would take some fifty builds. Three looks tell more:
- the model cut into regions, each fed what FP32 makes and all of its tensors outputs: one engine shows every value that is
  lost, since none hides the next;
- outputs keep layers apart that are fused otherwise, and may hide what is wrong; so the regions are looked at again
  with nothing marked inside: which of them are wrong?
- of those that are, copies side by side, in each another share of the nodes lowered: where in the region does it begin?
None of this is believed: whoever is accused is held in FP32 in an engine of the whole model, which is judged as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from harness.models.model import Model
from harness.record import Answer, Outcome
from harness.workers import Query
from probes.bisecting.candidates import Candidate
from probes.bisecting.engines.parts import Nodes, Part, exits, readers_of, regions
from probes.bisecting.engines.suspects import Errors, accused, with_partners
from probes.bisecting.engines.witness import Witness
from probes.bisecting.suspicion import Suspicion, keep, recall
from probes.bisecting.verdicts import DESTROYED

ROUNDS = 4  # what is held in one may uncover what comes after it in the same region
Tell = Callable[[str], None]
Emulated = Callable[[float], Suspicion]


class Engines(Protocol):
    """What can be asked of engines; `Witness` is the real one."""

    @property
    def model(self) -> Model: ...
    @property
    def candidates(self) -> Sequence[Candidate]: ...
    @property
    def limit(self) -> float: ...
    @property
    def beyond(self) -> Collection[str]: ...
    def judge(self, query: Query) -> Answer: ...
    def look(self, parts: Sequence[Part], *, watch: bool) -> list[Errors]: ...


def confirmed(witness: Witness, before: Suspicion, emulated: Emulated, tell: Tell) -> Suspicion:
    """The suspicion held against engines, from the cache if that was done before.

    Every engine whose outputs are judged here is one that the search asks for, and then finds in the cache. `emulated` is
    the suspicion at another tolerance.
    """
    cache, key = witness.recipe.bench.engines, witness.key(before)
    if (known := recall(cache, key)) is not None:
        return known
    suspicion, sure = held_against(witness, before, emulated, tell)
    if sure:
        keep(cache, key, suspicion)
    return suspicion


def held_against(engines: Engines, before: Suspicion, emulated: Emulated, tell: Tell) -> tuple[Suspicion, bool]:
    """The suspicion, widened until an engine with the suspects in FP32 is right; and whether every engine could be judged."""
    everything = frozenset(c.id for c in engines.candidates)
    tell("building an engine with everything lowered")
    if (whole := engines.judge(everything)).outcome is not Outcome.FAIL:
        return before, whole.outcome is Outcome.PASS
    held, looking = everything & {*before.suspects}, _Looking(engines, everything, tell)
    latest, answer = before, whole
    for _ in range(ROUNDS):
        if held:
            tell(f"building an engine with the {len(held)} suspected nodes in FP32")
            answer = engines.judge(everything - held)
        if answer.outcome is not Outcome.FAIL:
            break
        tell("it is wrong, too: looking at its parts, to see where the error comes up")
        adds_up = bool(latest.error and answer.value and answer.value <= DESTROYED)
        more = looking.for_more(held, corner=not adds_up)
        if not more and latest.error and answer.value and adds_up:  # all of it is that much worse than the emulation
            latest = emulated(engines.limit * latest.error / answer.value)
            more = everything & {*latest.suspects} - held
        if not more:
            break
        held |= more
    more = held - {*before.suspects}
    note = f"{before.note}; too few for the engine, {len(more)} more suspected" if more else before.note
    told = replace(before, suspects=tuple(sorted(held)), sensitivity=latest.sensitivity or looking.growth, note=note)
    return told, answer.outcome is not Outcome.UNRESOLVED


class _Looking:
    """Looks at the parts of one model."""

    def __init__(self, engines: Engines, everything: Query, tell: Tell) -> None:
        self.engines, self.everything, self.tell = engines, everything, tell
        self.growth: dict[int, float] = {}
        self.watch = True

    @cached_property
    def readers(self) -> Mapping[str, Sequence[int]]:
        return readers_of(self.engines.model)

    @cached_property
    def handed(self) -> Mapping[Nodes, Collection[str]]:
        """By region, what it is judged by. A value that does not fit is judged where it is read: a mask of -1e9 does no harm there."""
        model, beyond = self.engines.model, {*self.engines.beyond}
        return {
            nodes: exits(model, nodes, self.readers) - beyond for nodes in regions(model) if self.everything & {*nodes}
        }

    def for_more(self, held: Query, *, corner: bool) -> Query:
        """Who is to blame beside those that are held; none if nothing is to be seen."""
        parts = [Part(nodes, held & {*nodes}) for nodes in self.handed]
        if self.watch and (more := self._watched(parts, held)):
            return more
        self.watch = False  # what marks hide, they hide the next time as well
        return self._cornered(parts, held) if corner else frozenset()

    def _watched(self, parts: Sequence[Part], held: Query) -> Query:
        found: set[int] = set()
        for part, errors in self._look(parts, watch=True):
            who, growth = accused(self.engines.model, part.nodes, errors, self.engines.limit, self.readers)
            self.growth |= {at: value for at, value in growth.items() if at in self.everything}
            found |= who if self._wrong(part, errors) else set()
        return self._all_of(found) - held

    def _cornered(self, parts: Sequence[Part], held: Query) -> Query:
        """In each region that is wrong, the first node that makes it so: the nodes before it may be lowered."""
        wrong = [part for part, errors in self._look(parts, watch=False) if self._wrong(part, errors)]
        free = {part.nodes: [n for n in part.nodes if n in self.everything - held] for part in wrong}
        corners = {nodes: _Corner(order) for nodes, order in free.items() if order}
        while open_ := {nodes: corner for nodes, corner in corners.items() if not corner.done}:
            copies = max(1, len(self.engines.model.nodes) // sum(map(len, open_)))  # an engine no larger than the model
            tries = [(nodes, share) for nodes, corner in open_.items() for share in corner.shares(copies)]
            parts = [Part(nodes, (held & {*nodes}).union(corners[nodes].order[share:])) for nodes, share in tries]
            seen = self._look(parts, watch=False)
            if not seen:
                return frozenset()
            for (nodes, share), (part, errors) in zip(tries, seen, strict=True):
                corners[nodes].learn(share, wrong=self._wrong(part, errors))
        return self._all_of({corner.first for corner in corners.values()}) - held

    def _all_of(self, found: Collection[int]) -> Query:
        return self.everything & with_partners(self.engines.model, found, self.engines.beyond, self.readers)

    def _look(self, parts: Sequence[Part], *, watch: bool) -> list[tuple[Part, Errors]]:
        self.tell(f"building one of {len(parts)} parts, each fed FP32 values")
        seen = self.engines.look(parts, watch=watch)
        return list(zip(parts, seen, strict=True)) if seen else []

    def _wrong(self, part: Part, errors: Errors) -> bool:
        """By what it hands on."""
        return any(errors[name] > self.engines.limit for name in self.handed[part.nodes] if name in errors)


@dataclass
class _Corner:
    """A region that is wrong with all of `order` lowered. `good` of them may be, `bad` may not."""

    order: Sequence[int]
    good: int = 0
    bad: int = 0

    def __post_init__(self) -> None:
        self.bad = len(self.order)

    @property
    def done(self) -> bool:
        return self.bad - self.good <= 1

    @property
    def first(self) -> int:
        return self.order[self.bad - 1]

    def shares(self, copies: int) -> list[int]:
        """How many are lowered in each copy, evenly between good and bad."""
        steps = min(copies, self.bad - self.good - 1)
        return [self.good + (self.bad - self.good) * step // (steps + 1) for step in range(1, steps + 1)]

    def learn(self, share: int, *, wrong: bool) -> None:
        if wrong:
            self.bad = min(self.bad, share)
        elif share < self.bad:
            self.good = max(self.good, share)
