"""Profiles of several machines as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recsys_opt.errors import InputError
from recsys_opt.serving.profile import Device, Profile, unique_names


def merged(profiles: Sequence[Profile]) -> Profile:
    """One profile of the devices and paths of several, measured on different machines, of the same model."""
    if not profiles:
        raise InputError("there is no profile to merge; name at least one")
    first = profiles[0]
    devices: dict[str, Device] = {}
    for at, profile in enumerate(profiles):
        difference = first.model.difference(profile.model)
        if difference is not None:
            raise InputError(
                f"profile {at + 1} is of another model than the first: {difference}; a request fits only "
                "one of them, so they cannot be one profile"
            )
        for device in profile.devices:
            known = devices.setdefault(device.name, device)
            if known != device:
                raise InputError(
                    f"two different devices are called {device.name!r} ({known.what or 'no description'}; "
                    f"{device.what or 'no description'}); give one another name: recsys-opt profile --name"
                )
    unique_names("paths", [p.name for profile in profiles for p in profile.paths], "two of the profiles have")
    circumstances: dict[str, Any] = {}
    for profile in profiles:
        for key, value in profile.circumstances.items():
            name, again = key, 2
            while circumstances.get(name, value) != value:
                name, again = f"{key} ({again})", again + 1
            circumstances[name] = value
    return Profile(
        first.model,
        tuple(devices.values()),
        tuple(p for profile in profiles for p in profile.paths),
        circumstances,
        next((p.as_served for p in profiles if p.as_served is not None), None),
    )
