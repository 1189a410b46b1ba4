"""`recsys-opt data`: prepare, synth and their companions, one module each."""

from __future__ import annotations

import argparse

from recsys_opt.cli.subverbs import add_subverbs

EXAMPLE = "recsys-opt data prepare train.txt --out kaggle/"

SUBVERBS: dict[str, tuple[str, str]] = {
    "prepare": ("recsys_opt.cli.data_prepare", "make a dataset folder from Criteo text files"),
    "synth": ("recsys_opt.cli.data_synth", "generate Criteo-like rows whose best possible AUC is known"),
    "tables": (
        "recsys_opt.cli.data_tables",
        "a dataset's tables under a memory budget; or lookups of generated ones",
    ),
    "reorder": ("recsys_opt.cli.data_reorder", "put a dataset's ids into an order that suits tensor trains"),
    "compare": ("recsys_opt.cli.data_compare", "compare two data sets, such as real and generated rows"),
    "calibrate": ("recsys_opt.cli.data_calibrate", "measure the generator's statistics on real rows"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    add_subverbs(parser, SUBVERBS)
