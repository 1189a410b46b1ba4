"""A trained run as a server computes it: frozen tables, packed weights, batches of any size.

`load_frozen` maps the run's weights into memory rather than reading them: processes that serve one run share
its tables, and start as soon as they have touched them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from recsys_opt.documents import from_document
from recsys_opt.embeddings.registry import build_embedding
from recsys_opt.embeddings.tt_freeze import Level
from recsys_opt.errors import InputError
from recsys_opt.models.dlrm import DLRM, vector_order
from recsys_opt.models.saved import model_from_description
from recsys_opt.run_folder import RunFolder
from recsys_opt.serving.cached import Cache, cache_computed_rows
from recsys_opt.serving.dense_net import DenseNet, PackedNet, PlainNet, has_packed_products
from recsys_opt.serving.frozen_tables import FrozenTables, freeze_tables
from recsys_opt.serving.kept import stacked_rows, store_computed_rows
from recsys_opt.serving.profile import ServedModel
from recsys_opt.serving.requests import check_request
from recsys_opt.tables import TableConfig
from recsys_opt.tensor_files import map_tensors

Precision = Literal["fp32", "bf16"]
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WHOLE_BYTES = 16 << 20
_BLOCK_BYTES = 64 << 10
_PAGE_BYTES = 4096
_ROWS = frozenset({"dense", "fbgemm", "tiered"})


@dataclass(frozen=True)
class ServingOptions:
    """How a run's model is made ready to serve."""

    tensor_trains: Level = "prefix"
    """cores, prefix (most of a lookup's work done beforehand) or dense (whole tables)."""
    tables: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the stored rows of dense tables; what is not fp32 is written beside the checkpoint once."""
    products: Precision = "fp32"
    """Type of the MLPs' matrix products; sums are fp32."""
    networks: Precision = "fp32"
    """Type of the products of deep hash embeddings' networks; sums are fp32."""
    cache_rows: int = 0
    """Of each table whose rows are computed: so many, those that lookups want most often, are stored."""
    cache_from: str = ""
    """What lookups are counted in: access statistics (stats.npz) or a dataset; empty: the run's own training
    rows. Counted once: the rows are kept beside the checkpoint."""
    centroids: int = 0
    """Of a table with a cache: rows that are not stored are approximated by so many centroids'; 0: they are
    computed."""

    def __post_init__(self) -> None:
        if min(self.cache_rows, self.centroids) < 0:
            raise InputError(
                f"cache_rows = {self.cache_rows}, centroids = {self.centroids}; they must be 0 or more"
            )
        if not self.cache_rows and (self.cache_from or self.centroids):
            raise InputError("cache_from and centroids are of a cache; give it rows by cache_rows")

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str = "options") -> ServingOptions:
        """The inverse of `to_json`; what is missing has its default."""
        return from_document(cls, document, where)


class FrozenModel:
    """A model ready to predict. Calls are to come from one thread at a time."""

    def __init__(
        self,
        request: ServedModel,
        representation: str,
        fingerprint: str,
        options: ServingOptions,
        tables: FrozenTables,
        net: DenseNet,
        weights_bytes: int,
        device: torch.device,
    ) -> None:
        self.request = request
        """What `predict` takes."""
        self.representation = representation
        self.fingerprint = fingerprint
        self.options = options
        self.device = device
        self.bytes = weights_bytes + sum(t.nbytes for t in tables.tensors())
        """Of the tables and the weights."""
        self._tables, self._net = tables, net

    def predict(
        self, dense: NDArray[np.float32], ids: NDArray[np.int32] | NDArray[np.int64], *, checked: bool = False
    ) -> NDArray[np.float32]:
        """Probabilities of a click, [B].

        dense    [B, dense_features]
        ids      [F, B] feature-major
        checked  the request has been through `check_request`: ids out of range would be read
        """
        if not checked:
            check_request(self.request, dense, ids)
        with torch.inference_mode():
            numbers = torch.from_numpy(np.ascontiguousarray(dense)).to(self.device)
            rows = self._tables(torch.from_numpy(np.ascontiguousarray(ids)).to(self.device))
            found: NDArray[np.float32] = self._net(numbers, rows).cpu().numpy()
        return found

    def warm_up(self, sizes: Sequence[int] = (1, 16, 256, 1024)) -> None:
        """Touches every page of the tables, and predicts once for each size, so that no request has to."""
        for tensor in self._tables.tensors():
            if tensor.device.type == "cpu" and tensor.nbytes:
                tensor.reshape(-1).view(torch.uint8)[::_PAGE_BYTES].max()
        for size in sizes:
            self.predict(
                np.zeros((size, self.request.dense_features), np.float32),
                np.zeros((len(self.request.features), size), np.int32),
            )


def load_frozen(
    run: Path | str,
    options: ServingOptions | None = None,
    *,
    device: torch.device | str = "cpu",
    fingerprint: str | None = None,
) -> FrozenModel:
    """The model of a run's last checkpoint, ready to serve.

    fingerprint  of a profile's path: another checkpoint is refused
    """
    options, device = options or ServingOptions(), torch.device(device)
    folder, document, model = open_run(run)
    own = weights_fingerprint(folder / "model.safetensors")
    if fingerprint is not None and own != fingerprint:
        raise InputError(
            f"the weights of {run} are not those that were profiled ({own}, not {fingerprint}): profile it "
            "again, or serve the run that the profile is of"
        )
    dtype = _TYPES[options.tables]
    stacked = None if dtype == torch.float32 else stacked_rows(folder, own, model.embeddings, dtype)
    store_computed_rows(folder, own, model.embeddings)
    if options.cache_rows:
        cache = Cache(options.cache_rows, options.cache_from, options.centroids)
        cache_computed_rows(run, folder, own, model.embeddings, cache)
    if options.networks == "bf16" and (device.type != "cpu" or not has_packed_products(torch.bfloat16)):
        raise InputError(
            "networks in bf16 need a CPU that multiplies such numbers (AVX-512 BF16); serve with networks "
            "fp32"
        )
    tables = freeze_tables(
        model.embeddings,
        model.dim,
        options.tensor_trains,
        stacked,
        device,
        bf16_networks=options.networks == "bf16",
    )
    dataset = document.get("dataset", {})
    return FrozenModel(
        request_of(model, f"DLRM of {dataset.get('name', 'an unnamed dataset')}"),
        representation_of(model.embeddings.configs),
        own,
        options,
        tables,
        _net(
            model,
            vector_order(tables.order, tables.columns, model.dim),
            _TYPES[options.products],
            device,
        ),
        sum(p.nbytes for mlp in (model.bottom, model.top) for p in mlp.parameters()),
        device,
    )


def open_run(run: Path | str) -> tuple[Path, dict[str, Any], DLRM]:
    """A run's last checkpoint: its folder, what it says of itself, and the model with its weights mapped."""
    found = RunFolder(run).checkpoint_document()
    if found is None:
        raise InputError(f"{run} has no checkpoint; train it first: recsys-opt train DATASET --out {run}")
    folder, document = found
    return folder, document, _mapped_model(document["model"], folder / "model.safetensors")


def request_of(model: DLRM, what: str = "") -> ServedModel:
    """What a request to a model must look like."""
    embeddings = model.embeddings
    rows = [config.num_embeddings for config in embeddings.configs for _ in config.feature_names]
    return ServedModel(model.dense_features, embeddings.feature_names, tuple(rows), model.dim, what)


def representation_of(tables: Sequence[TableConfig]) -> str:
    """One name for a model's tables: "table", "tt", "dhe", "hybrid", or "select" where stored and hashed ones
    are mixed."""
    kinds = {t.representation for t in tables}
    made = kinds - _ROWS
    if not made:
        return "table"
    if made <= {"tt", "tt_cached"}:
        return "tt"
    if len(made) > 1 or (made == {"dhe"} and made != kinds):
        return "select"
    return made.pop()


def weights_fingerprint(path: Path) -> str:
    """A hash of a safetensors file: all of its header and of its tensors up to 16 MiB, of larger ones 256
    blocks spread evenly, so that 10 GB take no longer than 1."""
    digest = hashlib.sha256()
    tensors = map_tensors(path)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        blocks = _WHOLE_BYTES // _BLOCK_BYTES
        if len(data) <= _WHOLE_BYTES:
            digest.update(data.data)
            continue
        for k in range(blocks):
            first = k * (len(data) - _BLOCK_BYTES) // (blocks - 1)
            digest.update(data[first : first + _BLOCK_BYTES].data)
    return digest.hexdigest()[:32]


def _mapped_model(description: Mapping[str, Any], weights: Path) -> DLRM:
    """The model with its weights in the file: they are read when they are looked at."""
    _, model = model_from_description(description, weights=weights, device="meta")
    state = map_tensors(weights)
    try:
        model.load_state_dict(state, assign=True)
        for config in model.embeddings.configs:
            table = model.embeddings.table(config.name)
            if any(t.is_meta for t in (*table.parameters(), *table.buffers())):  # it holds what no file has
                own = build_embedding(config, device="cpu")
                prefix = f"embeddings.tables.{config.name}."
                own.load_state_dict(
                    {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
                )
                model.embeddings.tables.add(config.name, own)
    except RuntimeError as error:
        raise InputError(f"{weights} does not fit the model that its checkpoint describes: {error}") from None
    return model.eval().requires_grad_(False)


def _net(model: DLRM, order: Sequence[int], dtype: torch.dtype, device: torch.device) -> DenseNet:
    if device.type == "cpu" and has_packed_products(dtype):
        return PackedNet(model, order, dtype)
    if dtype != torch.float32:
        raise InputError(
            f"products in {dtype} need oneDNN and a processor that multiplies such numbers (AVX-512); serve "
            "with products fp32"
        )
    model.bottom.to(device)
    model.top.to(device)
    return PlainNet(model, order)
