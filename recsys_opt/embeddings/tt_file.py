"""A tensor-train bag in one safetensors file that says all that is needed to build it again.

The tensors are the bag's state dict, so that `safetensors.torch.load_file` reads them too; what the bag is
(rows, columns, shapes, ranks, pooling, padding) is JSON in the file's metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from recsys_opt.embeddings.tt import TTEmbeddingBag
from recsys_opt.errors import InputError
from recsys_opt.files import atomic_path
from recsys_opt.tensor_files import read_into, read_metadata, tensor_dtypes, write_tensors

FORMAT, VERSION = "recsys_opt.tt_embedding_bag", 1


def save_bag(bag: TTEmbeddingBag, path: Path | str) -> None:
    """Writes the bag's cores, in their type, and its description; the file appears whole."""
    description = {
        "num_embeddings": bag.num_embeddings,
        "embedding_dim": bag.embedding_dim,
        "tt_ranks": list(bag.tt_ranks[1:-1]),
        "tt_p_shapes": list(bag.tt_p_shapes),
        "tt_q_shapes": list(bag.tt_q_shapes),
        "mode": bag.mode,
        "padding_idx": bag.padding_idx,
        "init": bag.init,
        "include_last_offset": bag.include_last_offset,
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "bag": json.dumps(description)}
    with atomic_path(Path(path)) as partial:
        write_tensors(partial, bag.state_dict(), metadata=metadata)


def load_bag(path: Path | str, *, device: torch.device | str | None = None) -> TTEmbeddingBag:
    """The bag of a file of `save_bag`, on `device` (default: the CPU)."""
    path = Path(path)
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a {FORMAT} file: its format is {metadata.get('format')!r}; a plain state dict is "
            "read with safetensors.torch.load_file and load_state_dict"
        )
    if metadata.get("version") != str(VERSION):
        raise InputError(
            f"{path} has version {metadata.get('version')} of {FORMAT}; this recsys_opt reads version "
            f"{VERSION}: make it again, or use the recsys_opt that wrote it"
        )
    dtypes = set(tensor_dtypes(path).values())
    try:
        options: dict[str, Any] = json.loads(metadata["bag"])
        bag = TTEmbeddingBag(**options, dtype=dtypes.pop() if len(dtypes) == 1 else None, device="meta")
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: its description is not one of a bag ({error})") from None
    bag.to_empty(device=device or "cpu")
    read_into(path, bag.state_dict())
    return bag
