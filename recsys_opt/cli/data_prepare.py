"""`recsys-opt data prepare`: Criteo text to a dataset folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recsys_opt.cli.outcome import Outcome
from recsys_opt.cli.progress import ConsoleProgress
from recsys_opt.data.criteo import HashedIds, VocabularyIds
from recsys_opt.data.descriptor import published_cardinalities
from recsys_opt.data.prepare import Prepared, PrepareOptions, prepare
from recsys_opt.data.sources import find_sources
from recsys_opt.data.splits import Split
from recsys_opt.errors import InputError

EXAMPLE = "\n  ".join(
    (
        "recsys-opt data prepare train.txt test.txt --out kaggle/",
        "recsys-opt data prepare terabyte_folder/ --out terabyte/ --hash --cardinalities terabyte-40m",
    )
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="Kaggle's train.txt and test.txt or Terabyte's day_0 .. day_23, plain, .gz or .zst; or their "
        "folder. Lines end in LF or CR LF; hexadecimal digits may be upper-case",
    )
    parser.add_argument("--out", type=Path, required=True, help="the dataset folder to make")
    parser.add_argument(
        "--format", choices=("kaggle", "terabyte"), help="default: told by the names (day_<n> is terabyte)"
    )
    ids = parser.add_mutually_exclusive_group()
    ids.add_argument(
        "--min-count",
        type=int,
        default=None,
        metavar="N",
        help="ids from a vocabulary of the labelled rows: 0 missing, 1 values seen fewer than N times, then "
        "by descending count (this is the default, with N = 2)",
    )
    ids.add_argument(
        "--hash",
        action="store_true",
        help="ids by hashing to --cardinalities: 0 missing, else 1 + fmix32(value) mod (cardinality - 1); "
        "needs no memory for a vocabulary",
    )
    parser.add_argument(
        "--cardinalities",
        metavar="WHICH",
        help="with --hash: kaggle, terabyte-40m, terabyte-10m, mlperf-v2, 26 numbers with commas between, "
        "or a file of them (default: kaggle for Kaggle, terabyte-40m for Terabyte)",
    )
    parser.add_argument(
        "--dense-transform",
        choices=("dlrm", "torchrec"),
        default="dlrm",
        help="dlrm: log(x + 1), negative and missing as 0; torchrec: log(x - the file's minimum + 2), "
        "missing as 0 (default dlrm)",
    )
    parser.add_argument(
        "--split",
        metavar="A/B/C",
        help="shares of train/validation/test in time order, or last-day: all days but the last train, half "
        "of the last each for validation and test (default: 80/10/10 for Kaggle, last-day for Terabyte)",
    )
    parser.add_argument(
        "--bad-lines",
        choices=("error", "skip"),
        default="error",
        help="stop at a bad line, or leave such lines out, count and report them (default error)",
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: one a core")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what --out holds, where it was made from other input or options; start an unfinished "
        "run over",
    )


def run(args: argparse.Namespace) -> Outcome:
    """Prepares."""
    if args.cardinalities is not None and not args.hash:
        raise InputError("--cardinalities needs --hash; a vocabulary finds its own cardinalities")
    options = PrepareOptions(
        kind=args.format,
        ids=_ids(args),
        dense_transform=args.dense_transform,
        split=None if args.split is None else Split.parse(args.split),
        bad_lines=args.bad_lines,
        threads=args.threads,
        overwrite=args.overwrite,
    )
    with ConsoleProgress() as progress:
        prepared = prepare(args.inputs, args.out, options, progress)
    return Outcome(_text(prepared, args.out), _result(prepared, args.out))


def _ids(args: argparse.Namespace) -> VocabularyIds | HashedIds:
    if not args.hash:
        return VocabularyIds(2 if args.min_count is None else args.min_count)
    published = published_cardinalities()
    which = args.cardinalities
    if which is None:
        kind, _ = find_sources(args.inputs, args.format)
        which = "terabyte-40m" if kind == "terabyte" else "kaggle"
    if which in published:
        return HashedIds(published[which])
    file = Path(which)
    text = file.read_text(encoding="utf-8") if file.is_file() else which
    try:
        return HashedIds(tuple(int(n) for n in text.replace(",", " ").split()))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--cardinalities is {which!r}: neither one of {', '.join(published)}, nor 26 numbers, nor a "
            "file of them"
        ) from None


def _result(prepared: Prepared, out: Path) -> dict[str, Any]:
    info = prepared.info
    return {
        "out": str(out),
        "decision": prepared.decision,
        "rows": prepared.rows,
        "labelled_rows": info.labelled_rows,
        "parts": {p.name: p.rows for p in info.parts},
        "splits": {name: list(rows) for name, rows in info.splits.items()},
        "dense_columns": list(info.dense_columns),
        "cardinalities": {c.name: c.num_embeddings for c in info.sparse_columns},
        "ids": dict(info.ids),
        "bad_lines": prepared.bad_lines,
        "bad_line_examples": [example for f in prepared.files for example in f.bad_examples],
        "input_hash": info.input_hash,
        "seconds": round(prepared.seconds, 3),
        "rows_per_s": round(prepared.rows / prepared.seconds),
    }


def _text(prepared: Prepared, out: Path) -> str:
    info = prepared.info
    if prepared.decision == "unchanged":
        return f"{out} is whole and was made from the same input with the same options: nothing to do"
    if prepared.decision == "split":
        return f"{out}: the splits are now {dict(info.splits)}; its arrays stay as they are"
    ids = sum(c.num_embeddings for c in info.sparse_columns)
    lines = [
        f"{out}: {prepared.rows:,} rows in {len(info.parts)} part{'s' if len(info.parts) > 1 else ''}, "
        f"{ids:,} ids in {len(info.sparse_columns)} columns"
        + (" (went on from an interrupted run)" if prepared.decision == "resumed" else ""),
        "  splits: " + ", ".join(f"{name} {b - a:,}" for name, (a, b) in info.splits.items()),
        f"  {prepared.seconds:.1f} s, {prepared.rows / prepared.seconds:,.0f} rows/s",
    ]
    if prepared.bad_lines:
        lines.append(f"  left out {prepared.bad_lines:,} bad lines, the first ones:")
        lines += [f"    {example}" for f in prepared.files for example in f.bad_examples]
    return "\n".join(lines)
