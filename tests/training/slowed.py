"""Training slow enough that on no machine a run is done before a test has killed it."""

import sys
import time

from recsys_opt.cli.main import main
from recsys_opt.data.batches import Batch
from recsys_opt.training import trainer as trainer_module


def slow_steps(seconds: float) -> None:
    """Each step in this process takes `seconds` more; for processes that do nothing else."""
    update = trainer_module._Training._update

    def slowly(self: trainer_module._Training, batch: Batch) -> None:
        time.sleep(seconds)
        update(self, batch)

    trainer_module._Training._update = slowly  # type: ignore[method-assign]


if __name__ == "__main__":  # python -m tests.training.slowed SECONDS ...: recsys-opt ...
    slow_steps(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
