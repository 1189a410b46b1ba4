"""A small model in two representations, its profile, and a server over them in a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys_opt.files import write_json
from recsys_opt.models.recipes import DLRMConfig
from recsys_opt.models.saved import describe_model, load_model
from recsys_opt.run_folder import CHECKPOINT_FORMAT, VERSION, RunFolder
from recsys_opt.serving.profile import Profile, ServedModel
from recsys_opt.tables import TableConfig
from recsys_opt.tensor_files import write_tensors
from tests.serving.profiles import make_profile

ROWS = (4, 60, 700, 5000)
FEATURES = ("C1", "C2", "C3", "C4")
DENSE = 3


def write_run(folder: Path, *, tt: bool, seed: int = 0) -> Path:
    """A run folder with an untrained model: its weights are as good as any to be served."""
    torch.manual_seed(seed)
    config = DLRMConfig(bottom_mlp=(16, 8), top_mlp=(16, 1), dense_features=DENSE)
    tables = [
        TableConfig(
            name,
            rows,
            8,
            representation="tt" if tt and rows > 100 else "dense",
            options={"tt_ranks": 4} if tt and rows > 100 else {},
        )
        for name, rows in zip(FEATURES, ROWS, strict=True)
    ]
    model = config.build(tables)
    run = RunFolder(folder)
    weights = folder / f".checkpoint-{seed:09d}"  # never over one that is being served: that is mapped
    weights.mkdir(parents=True, exist_ok=True)
    write_tensors(weights / "model.safetensors", model.state_dict())
    write_json(
        weights / "checkpoint.json", CHECKPOINT_FORMAT, VERSION, {"model": describe_model(config, model)}
    )
    run.checkpoint_link.unlink(missing_ok=True)
    run.checkpoint_link.symlink_to(weights.name)
    return folder


def write_profile(path: Path, *, workers: int = 1, paths: tuple[str, ...] = ("table", "tt")) -> Profile:
    """A profile of `write_run`'s models: the table's path is quick, the tensor train's more accurate."""
    times = {"table": (0.75, 300e-6, 2e-6), "tt": (0.76, 600e-6, 5e-6)}
    made = make_profile(
        {f"{name}@cpu": times[name] for name in paths}, workers={"cpu": workers}, sizes=(1, 128, 1024)
    )
    profile = replace(
        made,
        model=ServedModel(DENSE, FEATURES, ROWS, 8, "a small model for tests"),
        paths=tuple(replace(p, run=p.representation) for p in made.paths),
    )
    profile.save(path)
    return profile


def write_all(folder: Path, **settings: Any) -> Path:
    """Runs and profile.json in a folder."""
    write_run(folder / "runs" / "table", tt=False)
    write_run(folder / "runs" / "tt", tt=True)
    write_profile(folder / "profile.json", **settings)
    return folder


def make_query(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Dense [B, D] and ids [F, B]."""
    random = np.random.default_rng(seed)
    dense = random.normal(size=(samples, DENSE)).astype(np.float32)
    ids = np.stack([random.integers(0, rows, samples) for rows in ROWS])
    return dense, ids


def expected(folder: Path, run: str, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The probabilities that a run's model gives."""
    model = load_model(folder / "runs" / run)
    with torch.inference_mode():
        return torch.sigmoid(model(torch.from_numpy(dense), torch.from_numpy(ids.reshape(-1)))).numpy()


class ServerProcess:
    """`recsys-opt serve`, ready."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._log: list[str] = []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "recsys_opt.cli.main", "serve", "--json"),
                *("--profile", str(folder / "profile.json"), "--runs", str(folder / "runs")),
                *("--http", "127.0.0.1:0", *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self._reader.join()
            raise AssertionError(f"the server did not start:\n{self.log}")
        self.ready: dict[str, Any] = json.loads(line)
        host, _, port = self.ready["http"].rpartition(":")
        self.address = (host, int(port))

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return "".join(self._log)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30) -> dict[str, Any]:
        """Has it drain; its exit must be a clean one. Returns its summary."""
        self.process.send_signal(number)
        return self.ended(timeout)

    def ended(self, timeout: float = 30) -> dict[str, Any]:
        """Waits for its end after it was told to stop."""
        assert self.process.stdout is not None
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join()
        assert code == 0, self.log
        summary: dict[str, Any] = json.loads(self.process.stdout.read())
        return summary

    def _read(self) -> None:
        assert self.process.stderr is not None
        self._log.extend(self.process.stderr)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server that is gone when the block is left."""
    server = ServerProcess(folder, *arguments, env=env)
    try:
        yield server
        if server.process.poll() is None:
            server.stop()
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def wait_until(condition: Any, seconds: float = 20) -> None:
    """Until a condition holds; fails when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
