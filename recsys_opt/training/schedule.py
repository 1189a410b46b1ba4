"""The learning rate over a run: linear warm-up, flat, then decay, as in the DLRM repository.

Lengths are shares of the run, so that a schedule fits a run of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recsys_opt.errors import InputError

DecayShape = Literal["linear", "quadratic"]


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes over a run; the factor multiplies every group's own rate."""

    warmup: float = 0.0
    """Share of the run, at its start, over which the rate rises linearly from 0."""
    decay: float = 0.0
    """Share of the run, at its end, over which the rate falls."""
    decay_shape: DecayShape = "linear"
    """How it falls: linear, or quadratic as in the DLRM repository."""
    final_factor: float = 0.0
    """What is left of the rate at the end."""

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "final_factor"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} = {value}; it must be between 0 and 1")
        if self.warmup + self.decay > 1:
            raise InputError(
                f"warmup = {self.warmup} and decay = {self.decay} are more than the whole run; "
                "their sum must be at most 1"
            )
        if self.decay_shape not in ("linear", "quadratic"):
            raise InputError(f"decay_shape = {self.decay_shape!r}; it must be 'linear' or 'quadratic'")

    def factor(self, step: int, total_steps: int) -> float:
        """The factor of the update number `step` = 0 .. total_steps - 1."""
        warmup_steps = self.warmup * total_steps
        decay_steps = self.decay * total_steps
        if step + 1 < warmup_steps:
            return (step + 1) / warmup_steps
        left = total_steps - step
        if left >= decay_steps:
            return 1.0
        share = left / decay_steps
        if self.decay_shape == "quadratic":
            share *= share
        return self.final_factor + (1.0 - self.final_factor) * share
