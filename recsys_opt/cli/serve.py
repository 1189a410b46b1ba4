"""`recsys-opt serve`: answers queries over HTTP and gRPC by the paths of a profile."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_opt.cli.arguments import field_docs
from recsys_opt.cli.outcome import Outcome
from recsys_opt.errors import InputError
from recsys_opt.quantities import byte_size, whole_number
from recsys_opt.server.auth import VARIABLE, read_token
from recsys_opt.server.settings import Limits, Settings
from recsys_opt.serving.spec import seconds

if TYPE_CHECKING:
    from recsys_opt.server.service import Addresses

EXAMPLE = """recsys-opt serve --profile profile.json --runs runs/ --sla 25ms --http 127.0.0.1:8080
  curl -s 127.0.0.1:8080/v1/models"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--profile",
        type=Path,
        required=True,
        metavar="FILE",
        help="profile.json of `recsys-opt profile`: the paths, and how long each takes",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="has the run folders that the profile names",
    )
    parser.add_argument(
        "--paths",
        nargs="+",
        default=[],
        metavar="PATH",
        help="paths to serve (default: all that are measured)",
    )
    parser.add_argument(
        "--policy", default="adaptive", help="which path answers which query (%(default)s); as in simulate"
    )
    parser.add_argument(
        "--sla",
        type=_seconds,
        default=0.025,
        metavar="TIME",
        help="in which a query is answered unless it says otherwise, e.g. 25ms (the default)",
    )
    parser.add_argument("--http", type=address, metavar="HOST:PORT", help="port 0: a free one")
    parser.add_argument("--grpc", type=address, metavar="HOST:PORT", help="port 0: a free one")
    parser.add_argument(
        "--spin",
        type=seconds,
        default=Settings.spin_s,
        metavar="TIME",
        help="for which a worker that has computed a batch waits for the next one without sleep, from which "
        "a core wakes late and slow (500us)",
    )
    parser.add_argument(
        "--model-name", default="dlrm", metavar="S", help="as queries may call it (%(default)s)"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"has the token that clients must send (default: the environment's {VARIABLE}, else none)",
    )
    limits = parser.add_argument_group("limits")
    docs, own = field_docs(Limits), Limits()
    for field in dataclasses.fields(Limits):
        value = getattr(own, field.name)
        name, metavar, shown = field.name, "N", f"{value:,}"
        kind: Callable[[str], float] = whole_number
        if name.endswith("_s"):
            name, metavar, shown = name.removesuffix("_s"), "TIME", f"{value:g}s"
            kind = _seconds
        elif name.endswith("_bytes"):
            name, metavar, kind = name.removesuffix("_bytes"), "BYTES", byte_size
        limits.add_argument(
            "--" + name.replace("_", "-"),
            dest=field.name,
            type=kind,
            default=value,
            metavar=metavar,
            help=f"{docs[field.name]} ({shown})".replace("%", "%%"),
        )


def run(args: argparse.Namespace) -> Outcome:
    """Serves until it is told to stop."""
    if args.http is None and args.grpc is None:
        raise InputError("there is nowhere to listen; give --http 127.0.0.1:8080, --grpc, or both")
    settings = Settings(
        profile=args.profile,
        runs=args.runs,
        policy=args.policy,
        sla_s=args.sla,
        paths=tuple(args.paths),
        model_name=args.model_name,
        spin_s=args.spin,
        token=read_token(args.token_file),
        limits=Limits(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Limits)}),
    )
    _log_to_stderr()
    try:
        from recsys_opt.server.service import Addresses
    except ImportError as error:
        raise InputError(f"the server needs packages: pip install 'recsys-opt[serve]' ({error})") from None
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        summary = runner.run(_serve(settings, Addresses(args.http, args.grpc), args.json))
    return Outcome(f"stopped    {summary['queries']}", summary)


async def _serve(settings: Settings, addresses: Addresses, as_json: bool) -> dict[str, Any]:
    from recsys_opt.server.service import Service

    begun = time.monotonic()
    service = Service(settings)
    await service.start(addresses)
    gc.collect()
    gc.freeze()  # what is there now stays: collections look at queries alone
    found = service.describe() | {
        name: f"{where[0]}:{where[1]}"
        for name, where in (("http", service.addresses.http), ("grpc", service.addresses.grpc))
        if where is not None
    }
    if as_json:
        print(json.dumps({"ready": True, **found}), flush=True)
    else:
        print(_ready_line(found, time.monotonic() - begun), flush=True)
    await service.run()
    return {"stopped": True, "queries": service.metrics.outcomes()}


def _ready_line(found: dict[str, Any], took_s: float) -> str:
    paths = ", ".join(p["name"] for p in found["models"][0]["paths"])
    where = " ".join(f"{name}://{found[name]}" for name in ("http", "grpc") if name in found)
    return (
        f"ready      {where}  {paths}  policy {found['policy']}, SLA {found['sla_ms']:g} ms, "
        f"{len(found['workers'])} workers, {took_s:.1f} s"
    )


def _log_to_stderr() -> None:
    log = logging.getLogger("recsys_opt.server")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: it takes half the time for a request."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _seconds(text: str) -> float:
    try:
        value = seconds(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text}; it must be longer than 0 s")
    return value


def address(text: str) -> tuple[str, int]:
    """HOST:PORT on the command line."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}; it must be HOST:PORT, e.g. 127.0.0.1:8080")
    return host, int(port)
