"""Which paths each device holds: MP-Rec's offline stage.

A device's memory holds a set of paths whose bytes together it can take. A choice of sets is worth

    value     the correct predictions a second inside the SLA that no scheduler can exceed with these paths at
              the load expected (`recsys_opt.serving.bound`: a linear program, which fallbacks help as soon as
              the most accurate path alone would not keep up)
    headroom  the samples a second that the devices can answer inside the SLA with their cheapest paths; it
              decides between choices of equal value
    bytes     the fewer the better, where both are equal

More paths are never worth less, so value and headroom are monotone in the sets. Three ways to choose:

- `mp_rec`: on each device the most accurate path that fits, then the next that fits beside it, and so on (the
  paper's text, as we read it: it published no mapper);
- `chosen`: from that start and from greedy ones, by exchanges of paths as long as they gain;
- `exact`: branch and bound over all sets. A branch's bound is the worth of what it has chosen together with
  all that may still be: exact by monotonicity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from recsys_opt.errors import InfeasibleError, InputError
from recsys_opt.serving.bound import held_bound, sample_costs
from recsys_opt.serving.linear import share_out
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.sizes import Sizes

_EQUAL = 1e-9
"""Relative difference below which two worths are one."""

Worth = tuple[float, float]
"""(value, headroom): compared in this order."""
Choice = frozenset[int]
"""Paths, by their places in the profile."""


@dataclass(frozen=True)
class DeviceMap:
    """Which paths each device holds, and what that is worth."""

    paths: dict[str, tuple[str, ...]]
    """Of each device, in the order of the profile."""
    bytes: dict[str, int]
    value: float
    """Correct predictions a second: no scheduler exceeds them at the load."""
    headroom: float
    """Samples a second that can be answered inside the SLA."""
    shares: dict[str, float]
    """Of the samples offered, those that go to each path at the optimum."""


class Mapper:
    """A profile under limits of memory, at a load."""

    def __init__(
        self,
        profile: Profile,
        memory: Mapping[str, int] | None = None,
        *,
        sizes: Sizes,
        sla: float,
        rate: float | None = None,
    ) -> None:
        """memory  bytes of devices, by name; of others all that they have
        rate    queries a second; None: half of what all paths that fit could answer together
        """
        self.profile = profile
        given = dict(memory or {})
        for name, limit in given.items():
            if limit < 0:
                raise InputError(f"memory of {profile.device(name).name} = {limit}; it must not be negative")
        self.memory = {d.name: given.get(d.name, d.memory_bytes) for d in profile.devices}
        self._device = [path.device for path in profile.paths]
        self._bytes = [path.bytes for path in profile.paths]
        number = {d.name: at for at, d in enumerate(profile.devices)}
        self._owner = np.array([number[d] for d in self._device])
        self._capacity = np.array([d.workers for d in profile.devices], np.float64)
        self._accuracy = np.array([p.accuracy for p in profile.paths])
        self._cost = np.array([float(sample_costs(p, sla).min()) for p in profile.paths])
        self.candidates = [
            p for p in range(len(self._bytes)) if self._bytes[p] <= self.memory[self._device[p]]
        ]
        """Paths that fit alone."""
        if not self.candidates:
            over = [b - self.memory[d] for b, d in zip(self._bytes, self._device, strict=True)]
            least = over.index(min(over))
            raise InfeasibleError(
                f"no path fits its device's memory; the nearest is {profile.paths[least].name}, which takes "
                f"{self._bytes[least]:,} bytes of {self.memory[self._device[least]]:,}: give more, or "
                "profile a smaller representation (recsys-opt train --representation dhe or tt)"
            )
        if all(not math.isfinite(self._cost[p]) for p in self.candidates):
            raise InfeasibleError(
                f"no path that fits answers a batch of any size inside the SLA of {sla * 1e3:g} ms; give it "
                "more time"
            )
        if rate is None:
            rate = held_bound(profile.with_paths(self._names(self.candidates)), sizes, sla) / 2
        self.rate, self.sla, self.sizes = rate, sla, sizes
        self._supply = np.array([rate * sizes.mean])
        self._known: dict[Choice, Worth] = {}

    def worth(self, choice: Iterable[int]) -> Worth:
        """Value and headroom of paths, whether they fit or not."""
        key = frozenset(choice)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._solved(key)
        return found

    def fits(self, choice: Iterable[int]) -> bool:
        """Whether the paths' bytes are within the memory of their devices."""
        used = dict.fromkeys(self.memory, 0)
        for p in choice:
            used[self._device[p]] += self._bytes[p]
        return all(used[name] <= limit for name, limit in self.memory.items())

    def result(self, choice: Iterable[int]) -> DeviceMap:
        """A choice in words."""
        chosen = sorted(choice)
        value, headroom = self.worth(chosen)
        on = {name: [p for p in chosen if self._device[p] == name] for name in self.memory}
        shared = self._shared(chosen) if chosen else {}
        return DeviceMap(
            {name: tuple(self._names(own)) for name, own in on.items()},
            {name: sum(self._bytes[p] for p in own) for name, own in on.items()},
            value,
            headroom,
            {self.profile.paths[p].name: share for p, share in shared.items()},
        )

    def mp_rec(self) -> Choice:
        """On each device the most accurate path that fits what is left, again and again."""
        choice: set[int] = set()
        for p in sorted(self.candidates, key=lambda p: -self._accuracy[p]):
            if self.fits(choice | {p}):
                choice.add(p)
        return frozenset(choice)

    def chosen(self) -> Choice:
        """The best of greedy starts, each improved by exchanges until none gains."""
        starts = [self.mp_rec(), self._greedy(lambda gain, size: gain)]
        starts.append(self._greedy(lambda gain, size: gain / max(size, 1)))
        found = [self._exchanged(start) for start in starts]
        best = found[0]
        for other in found[1:]:
            if self._better(self.worth(other), self.worth(best)):
                best = other
        return self._without_idle(best)

    def exact(self, most: int = 200_000) -> Choice:
        """The best choice of all; InputError where the search has more than `most` branches."""
        best = self.chosen()
        order = sorted(self.candidates, key=lambda p: (-self._accuracy[p], self._cost[p]))
        branches = 0
        stack: list[tuple[int, Choice]] = [(0, frozenset())]
        while stack:
            at, choice = stack.pop()
            branches += 1
            rest = [p for p in order[at:] if self.fits(choice | {p})]
            if branches > most:
                raise InputError(
                    f"the exact optimum of {len(order)} paths needs more than {most:,} branches; leave "
                    "paths out"
                )
            if not self._better(self.worth(choice | set(rest)), self.worth(best)):
                continue
            if self.fits(choice | set(rest)):
                best = choice | set(rest)
                continue
            nearest = order.index(rest[0])
            stack.append((nearest + 1, choice))
            stack.append((nearest + 1, choice | {rest[0]}))
        return self._without_idle(best)

    def _solved(self, choice: Choice) -> Worth:
        own = [p for p in sorted(choice) if math.isfinite(self._cost[p])]
        if not own:
            return 0.0, 0.0
        cost, owner = self._cost[own], self._owner[own]
        value = share_out(self._accuracy[own], cost[None, :], owner, self._supply, self._capacity).reached
        headroom = sum(float(self._capacity[d] / cost[owner == d].min()) for d in np.unique(owner).tolist())
        return value, headroom

    def _shared(self, choice: list[int]) -> dict[int, float]:
        own = [p for p in choice if math.isfinite(self._cost[p])]
        found = share_out(
            self._accuracy[own], self._cost[own][None, :], self._owner[own], self._supply, self._capacity
        )
        shares = dict.fromkeys(choice, 0.0)
        return shares | dict(zip(own, (found.used / self._supply[0]).tolist(), strict=True))

    @staticmethod
    def _better(a: Worth, b: Worth) -> bool:
        for x, y in zip(a, b, strict=True):
            if abs(x - y) > _EQUAL * max(abs(x), abs(y)):
                return x > y
        return False

    def _greedy(self, merit: Callable[[float, int], float]) -> Choice:
        """Adds the path of most merit, by its gain of value and its bytes, while one gains and fits."""
        choice: Choice = frozenset()
        while True:
            now = self.worth(choice)
            gains = []
            for p in self.candidates:
                if p not in choice and self.fits(choice | {p}):
                    then = self.worth(choice | {p})
                    if self._better(then, now):
                        gain, spare = then[0] - now[0], then[1] - now[1]
                        gains.append((merit(gain, self._bytes[p]), merit(spare, self._bytes[p]), -p))
            if not gains:
                return choice
            choice |= {-max(gains)[2]}

    def _exchanged(self, choice: Choice) -> Choice:
        """One path in, and up to two of its device out for it, as long as that gains."""
        improved = True
        while improved:
            improved = False
            for p in self.candidates:
                if p in choice:
                    continue
                mates = [q for q in choice if self._device[q] == self._device[p]]
                outs = [(), *((q,) for q in mates), *((q, r) for q in mates for r in mates if q < r)]
                options = [(choice - set(out)) | {p} for out in outs]
                for option in (o for o in options if self.fits(o)):
                    if self._better(self.worth(option), self.worth(choice)):
                        choice, improved = option, True
                        break
        return choice

    def _without_idle(self, choice: Choice) -> Choice:
        """Without the paths, the largest first, that add neither value nor headroom."""
        for p in sorted(choice, key=lambda p: -self._bytes[p]):
            if not self._better(self.worth(choice), self.worth(choice - {p})):
                choice -= {p}
        return choice

    def _names(self, choice: Iterable[int]) -> list[str]:
        return [self.profile.paths[p].name for p in sorted(choice)]
