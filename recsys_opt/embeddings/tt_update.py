"""Updates of tensor-train cores in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_opt.embeddings.fused_update import Algorithm, FusedUpdate, FusesUpdate, shared_update
from recsys_opt.ops import TT_ALGORITHMS, TTUpdate

_STATES: dict[Algorithm, tuple[str, ...]] = {
    "sgd": (),
    "adagrad": ("",),
    "rowwise_adagrad": (".rowwise",),
    "adam": (".exp_avg", ".exp_avg_sq"),
}
"""Names of a core's states, behind its own."""


class FusesCoreUpdate(nn.Module, FusesUpdate):
    """A tensor train whose backward pass can update its cores.

    The states are buffers that `state_dict` leaves out (an optimizer's checkpoint holds them), so that they
    move with the module.
    """

    stores_rows = False
    cores: nn.ParameterList
    _state_names: tuple[str, ...] = ()

    def core_tensors(self) -> list[nn.Parameter]:
        """The cores; `list(self.cores)` takes ten times as long."""
        # As self.cores, which takes Python 1 us to find.
        return list(self._modules["cores"]._parameters.values())  # type: ignore[union-attr, arg-type]

    @property
    def learns(self) -> bool:
        """Whether the cores get updates or gradients."""
        return self._update is not None or any(core.requires_grad for core in self.cores)

    def fuse_update(self, update: FusedUpdate | None) -> None:
        """Lets the backward passes to come update the cores; see `FusesUpdate.fuse_update`.

        The cores stop to require gradients, and start again with None. To be called once the module has its
        device and dtype. States are float32 (float64 for float64 cores), zero at first: none for "sgd", as
        large as the cores for "adagrad", one number per slice cores[k][i] for "rowwise_adagrad", twice as
        large as the cores for "adam".
        """
        for name in self._state_names:
            delattr(self, name)
        self._update, names = update, []
        for k, core in enumerate(self.cores):
            core.requires_grad_(update is None)
            core.grad = None
            for s in range(0 if update is None else len(_STATES[update.algorithm])):
                rowwise = update is not None and update.algorithm == "rowwise_adagrad"
                shape = core.shape[:1] if rowwise else core.shape
                dtype = torch.float64 if core.dtype == torch.float64 else torch.float32
                state = torch.zeros(shape, dtype=dtype, device=core.device)
                names.append(f"_core_{k}_state_{s}")
                self.register_buffer(names[-1], state, persistent=False)
        self._state_names = tuple(names)

    def update_state(self) -> dict[str, Tensor]:
        """The cores' states by name, "cores.0" (Adagrad), "cores.0.exp_avg", ..., and Adam's "step"."""
        if self._update is None:
            return {}
        suffixes = _STATES[self._update.algorithm]
        names = [f"cores.{k}{suffix}" for k in range(len(self.cores)) for suffix in suffixes]
        state = dict(zip(names, self._states(), strict=True))
        if self._update.algorithm == "adam":
            state["step"] = self._update.numbers(self.cores[0].device)[-1:]
        return state

    def _states(self) -> list[Tensor]:
        return [state for name in self._state_names if (state := self._buffers[name]) is not None]


def update_of(bags: Sequence[FusesCoreUpdate], device: torch.device) -> TTUpdate | None:
    """What the op needs to update the cores of bags that are looked up together; None: nothing to update.

    device  the cores'
    """
    update = shared_update(bags)
    if update is None:
        return None
    states: list[Tensor] = []
    for bag in bags:
        if bag._state_names:
            states += bag._states()
    return TTUpdate(TT_ALGORITHMS[update.algorithm], states, update.numbers(device))
