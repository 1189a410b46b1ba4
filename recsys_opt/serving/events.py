"""What happens to devices during a simulation: "10s:gpu:lost", "20s:gpu:ok", "5s:cpu:x2"."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from recsys_opt.errors import InputError
from recsys_opt.serving.bound import DeviceState
from recsys_opt.serving.profile import Profile
from recsys_opt.serving.spec import seconds


@dataclass(frozen=True)
class Event:
    """From a time on a device's batches take `factor` times as long; inf: it is lost; 1: it is well again."""

    time: float
    """Seconds from the first arrival on."""
    device: str
    factor: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time) and self.time >= 0):
            raise InputError(f"an event at {self.time} s; its time must be 0 s or later")
        if not self.factor > 0:
            raise InputError(f"an event with the factor {self.factor}; it must be above 0")

    @property
    def spec(self) -> str:
        """The text that gives it again."""
        what = "lost" if self.factor == math.inf else "ok" if self.factor == 1 else f"x{self.factor:g}"
        return f"{self.time:g}s:{self.device}:{what}"


def parse_event(text: str) -> Event:
    """An event from its text."""
    parts = text.split(":")
    if len(parts) != 3 or not all(parts):
        raise InputError(f"event {text!r}; write TIME:DEVICE:lost, :ok or :xFACTOR, e.g. 10s:gpu:lost")
    time, device, what = parts
    slower = re.fullmatch(r"x([0-9]*\.?[0-9]+)", what)
    if what not in ("lost", "ok") and slower is None:
        raise InputError(f"event {text!r}: {what!r}; it must be lost, ok, or x2 where it takes twice as long")
    factor = float(slower[1]) if slower else math.inf if what == "lost" else 1.0
    try:
        return Event(seconds(time), device, factor)
    except InputError as error:
        raise InputError(f"event {text!r}: {error}") from None


def native_events(events: Sequence[Event], profile: Profile) -> list[tuple[float, int, float]]:
    """In the order of their times, devices by number, as `recsys_opt._serving.simulate` takes them."""
    names = [profile.device(d.name).name for d in profile.devices]
    numbered = []
    for event in sorted(events, key=lambda e: e.time):
        numbered.append((event.time, names.index(profile.device(event.device).name), event.factor))
    return numbered


def device_states(events: Sequence[Event], profile: Profile, span: float) -> list[DeviceState]:
    """The states of each device in the first `span` seconds, with the share of the time in each."""
    states = []
    for device in profile.devices:
        own = sorted((e for e in events if e.device == device.name and e.time < span), key=lambda e: e.time)
        begins = [0.0, *(e.time for e in own)]
        factors = [1.0, *(e.factor for e in own)]
        time_at: dict[float, float] = {}
        for at, factor in enumerate(factors):
            end = begins[at + 1] if at + 1 < len(begins) else span
            time_at[factor] = time_at.get(factor, 0.0) + end - begins[at]
        for factor, time in time_at.items():
            if time > 0 and math.isfinite(factor):
                states.append(DeviceState(device.name, device.workers * time / span, factor))
    return states
