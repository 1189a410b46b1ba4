"""hardware.toml: the devices that a plan is for, their two tiers of memory and the links between them.

    format = "recsys_opt.hardware"
    version = 1
    name = "h100"
    source = "where the figures are from"
    measured = false
    nodes = 1
    devices_per_node = 8

    [fast]                              # and [slow]: a tier, of one device
    name = "hbm"
    memory_bytes = "80GB"
    reserved_bytes = "12GB"             # for dense parameters and activations; 0 where absent
    row_bytes = [16, 64, 256]
    read_bytes_per_s = [.5e12, 1.8e12, 2.7e12]
    update_bytes_per_s = [.2e12, .8e12, 1.2e12]

    [intra_node]                        # and [inter_node]: a link, as one device's collectives use it
    name = "NVLink 4"
    bytes_per_s = 370e9                 # in one direction
    latency_seconds = 25e-6             # of a collective

Bandwidths are those of rows at random at full load, by the bytes of a row, and count the row's bytes alone:
a row of 16 bytes makes the memory move 32 or 64. An update reads a row and writes it back, and counts its
bytes once. Between two sizes the logarithm of the bandwidth is linear in that of the size; a row larger than
all has the bandwidth of the largest, a smaller one takes the time of the smallest.

`Hardware.load` takes a file or a preset's name (`PRESETS`), with changes behind a colon:
"h100:nodes=4,devices=8,hbm=24GB,uvm=128GB,reserved=8GB". There `devices` are those of a node; the memory of a
tier goes by the tier's name, and is what tables may take of it unless `reserved` says what they may not.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recsys_opt.errors import InputError
from recsys_opt.files import write_text
from recsys_opt.quantities import byte_size

FORMAT = "recsys_opt.hardware"
VERSION = 1
PRESET_FOLDER = Path(__file__).parent / "presets"
PRESETS = tuple(sorted(path.stem for path in PRESET_FOLDER.glob("*.toml")))
MEASURE = "measure it with `recsys-opt bench hardware`"


Part = TypeVar("Part", bound="Tier | Link | Hardware")


@dataclass(frozen=True)
class Tier:
    """A kind of memory that one device reads rows from."""

    name: str
    """"hbm", "uvm" (host memory that the device reads in place), "ddr" or "disk"."""
    memory_bytes: int
    """Of one device."""
    row_bytes: tuple[int, ...]
    """Sizes of rows at which bandwidths are given, ascending."""
    read_bytes_per_s: tuple[float, ...]
    """At each of these sizes: bytes of rows read a second."""
    update_bytes_per_s: tuple[float, ...]
    """The same of rows read and written back; a row's bytes count once."""
    reserved_bytes: int = 0
    """Of the memory, what tables may not take."""

    def __post_init__(self) -> None:
        for key in ("memory_bytes", "reserved_bytes"):
            object.__setattr__(self, key, _bytes(key, getattr(self, key)))
        for key in ("row_bytes", "read_bytes_per_s", "update_bytes_per_s"):
            object.__setattr__(self, key, _numbers(key, getattr(self, key)))
        _text("name", self.name)
        if self.capacity_bytes < 1:
            raise InputError(
                f"memory_bytes = {self.memory_bytes}, of which reserved_bytes = {self.reserved_bytes}: "
                "tables may take the difference, which must be at least 1 byte; reserve less, or give the "
                "memory that is there"
            )
        sizes = self.row_bytes
        if any(size != int(size) for size in sizes) or any(a >= b for a, b in itertools.pairwise(sizes)):
            raise InputError(
                f"row_bytes = {list(sizes)}; sizes of rows are whole numbers of bytes that ascend"
            )
        object.__setattr__(self, "row_bytes", tuple(int(size) for size in sizes))
        for key in ("read_bytes_per_s", "update_bytes_per_s"):
            if len(getattr(self, key)) != len(sizes):
                raise InputError(
                    f"{key} has {len(getattr(self, key))} bandwidths for the {len(sizes)} sizes of "
                    "row_bytes; give one of each"
                )

    @property
    def capacity_bytes(self) -> int:
        """What tables may take of one device's memory."""
        return self.memory_bytes - self.reserved_bytes

    def read_seconds(self, row_bytes: float) -> float:
        """Of one row of so many bytes, while all the device's lookups read such rows."""
        return self._seconds(row_bytes, self.read_bytes_per_s)

    def update_seconds(self, row_bytes: float) -> float:
        """Of reading one row and writing it back, while all do."""
        return self._seconds(row_bytes, self.update_bytes_per_s)

    def _seconds(self, row_bytes: float, bandwidths: tuple[float, ...]) -> float:
        if not 0 < row_bytes < math.inf:
            raise InputError(f"row_bytes = {row_bytes}; a row has at least 1 byte")
        size = max(row_bytes, self.row_bytes[0])
        bandwidth = np.interp(math.log(size), np.log(self.row_bytes), np.log(bandwidths))
        return float(size / np.exp(bandwidth))


@dataclass(frozen=True)
class Link:
    """What connects devices, as their collectives use it."""

    name: str
    bytes_per_s: float
    """Of one device in one direction."""
    latency_seconds: float
    """Of one collective, however little it sends."""

    def __post_init__(self) -> None:
        _text("name", self.name)
        object.__setattr__(self, "bytes_per_s", _number("bytes_per_s", self.bytes_per_s))
        latency = _number("latency_seconds", self.latency_seconds, zero=True)
        object.__setattr__(self, "latency_seconds", latency)


@dataclass(frozen=True)
class Hardware:
    """The content of hardware.toml."""

    name: str
    source: str
    """Where the figures are from."""
    measured: bool
    """False: assumed, from data sheets and papers."""
    nodes: int
    devices_per_node: int
    fast: Tier
    slow: Tier
    intra_node: Link
    """Between the devices of a node."""
    inter_node: Link
    """Between devices of two nodes."""

    def __post_init__(self) -> None:
        _text("name", self.name)
        if not isinstance(self.source, str):
            raise InputError(
                f"source = {self.source!r}; it must be text that says where the figures are from"
            )
        if not isinstance(self.measured, bool):
            raise InputError(f"measured = {self.measured!r}; it must be true or false")
        for key in ("nodes", "devices_per_node"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20:
                raise InputError(f"{key} = {value!r}; it must be a whole number from 1 to {1 << 20}")
        if self.fast.name == self.slow.name:
            raise InputError(f"both tiers are called {self.fast.name!r}; give each a name of its own")

    @property
    def num_devices(self) -> int:
        """Of all nodes."""
        return self.nodes * self.devices_per_node

    def node_of(self, device: int) -> int:
        """Devices are counted node after node."""
        return device // self.devices_per_node

    @property
    def sha256(self) -> str:
        """Of the content: equal in files that say the same."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str = "the hardware") -> Hardware:
        """The inverse of `to_json`; checks every key and value.

        where  what the document is, for messages
        """
        content = dict(document)
        for key in ("fast", "slow", "intra_node", "inter_node"):
            if key not in content:
                continue
            if not isinstance(content[key], Mapping):
                raise InputError(f"{where}: {key} = {content[key]!r}; it must be a table, [{key}]")
            at = f"{where}: [{key}]"
            part: type[Tier | Link] = Link if key.endswith("node") else Tier
            content[key] = _build(part, content[key], at)
        return _build(cls, content, f"{where}:")

    def save(self, path: Path | str) -> None:
        """Writes hardware.toml whole."""
        head = {"format": FORMAT, "version": VERSION}
        write_text(Path(path), _toml({**head, **self.to_json()}))

    @classmethod
    def load(cls, spec: Path | str) -> Hardware:
        """Reads a file, or the preset of this name, with the changes behind a colon (see the module)."""
        text = str(spec)
        base, _, changes = text.rpartition(":")
        if not base or "=" not in changes or Path(text).exists():
            base, changes = text, ""
        if base in PRESETS:
            hardware = _read(cls, PRESET_FOLDER / f"{base}.toml")
        elif base.endswith(".toml") or Path(base).exists():
            hardware = _read(cls, Path(base))
        else:
            raise InputError(
                f"no hardware preset is called {base!r}{_meant(base, PRESETS)}; there are "
                f"{', '.join(PRESETS)}. A file's name ends in .toml: `recsys-opt bench hardware` writes one"
            )
        return _changed(hardware, changes, text) if changes else hardware


def _read(cls: type[Hardware], path: Path) -> Hardware:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; `recsys-opt bench hardware` writes such a file, and the presets need "
            f"none: {', '.join(PRESETS)}"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the .toml file in it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not whole, readable TOML ({error}), so not hardware; `recsys-opt bench hardware` "
            f"writes such a file, and there are presets: {', '.join(PRESETS)}"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; mend that, or name a preset") from None
    if (found := document.pop("format", None)) != FORMAT:
        raise InputError(f'{path}: format = {found!r}; a file of hardware begins with format = "{FORMAT}"')
    if (version := document.pop("version", None)) != VERSION:
        raise InputError(
            f"{path} has version {version!r} of {FORMAT}; this recsys_opt reads version {VERSION}: use the "
            "recsys_opt that wrote it, or measure again with `recsys-opt bench hardware`"
        )
    return cls.from_json(document, str(path))


def _changed(hardware: Hardware, changes: str, spec: str) -> Hardware:
    """`hardware` with "nodes=4,hbm=24GB", named as the spec."""
    given: dict[str, str] = {}
    keys = ("nodes", "devices", hardware.fast.name, hardware.slow.name, "reserved")
    for change in changes.split(","):
        key, _, value = (part.strip() for part in change.partition("="))
        if key not in keys:
            raise InputError(f"{spec}: no {key!r} can be changed{_meant(key, keys)}; give {', '.join(keys)}")
        if key in given:
            raise InputError(f"{spec}: {key} is given twice")
        given[key] = value

    def read(key: str, convert: Callable[[str], int], what: str) -> int | None:
        if key not in given:
            return None
        try:
            return convert(given[key])
        except ValueError:
            raise InputError(f"{spec}: {key} = {given[key]!r}; it must be {what}") from None

    sizes = {key: read(key, byte_size, "a number of bytes, e.g. 24GB") for key in keys[2:]}
    counts = {key: read(key, int, "a whole number") for key in keys[:2]}
    try:
        fast, slow = hardware.fast, hardware.slow
        if (memory := sizes[fast.name]) is not None:
            fast = replace(fast, memory_bytes=memory, reserved_bytes=0)
        if (memory := sizes[slow.name]) is not None:
            slow = replace(slow, memory_bytes=memory, reserved_bytes=0)
        if (reserved := sizes["reserved"]) is not None:
            fast = replace(fast, reserved_bytes=reserved)
        nodes, devices = counts["nodes"], counts["devices"]
        return replace(
            hardware,
            name=Path(spec).name,
            fast=fast,
            slow=slow,
            nodes=hardware.nodes if nodes is None else nodes,
            devices_per_node=hardware.devices_per_node if devices is None else devices,
        )
    except InputError as error:
        raise InputError(f"{spec}: {error}") from None


def _build(cls: type[Part], document: Mapping[str, Any], where: str) -> Part:
    known = [f.name for f in fields(cls)]
    for key in document:
        if key not in known:
            raise InputError(f"{where} {key} is no key{_meant(key, known)}; the keys are {', '.join(known)}")
    for f in fields(cls):
        if f.name not in document and f.default is MISSING:
            raise InputError(f"{where} {f.name} is missing; give it, or {MEASURE}")
    try:
        return cls(**document)
    except InputError as error:
        raise InputError(f"{where} {error}") from None


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise InputError(f"{key} = {value!r}; it must be a text that is not empty")


def _bytes(key: str, value: Any) -> int:
    try:
        number = byte_size(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise InputError(f'{key} = {value!r}; it must be a number of bytes, e.g. 24000000000 or "24GB"')
    return number


def _number(key: str, value: Any, *, zero: bool = False) -> float:
    number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else value
    if not (number >= 0 if zero else number > 0) or number > 1e300:
        limit = "0 or more" if zero else "above 0"
        raise InputError(f"{key} = {value!r}; it must be a finite number {limit}: {MEASURE}")
    return float(number)


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{key} = {value!r}; it must be a list of numbers, one for each size of rows")
    return tuple(_number(f"{key}[{at}]", number) for at, number in enumerate(value))


def _toml(document: Mapping[str, Any]) -> str:
    """Values first, then the tables, each under its name."""
    values = {key: value for key, value in document.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items()]
    for key, table in document.items():
        if key not in values:
            lines += ["", f"[{key}]", *(f"{name} = {_toml_value(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    # JSON's texts and numbers are TOML's, but for one character.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
