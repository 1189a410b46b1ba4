"""The native ops: loads the kernels, registers shapes (fake kernels) and gradients.

`recsys_opt.reference` says in plain torch what each op computes; `csrc/library.cpp` holds the schemas.
"""

from __future__ import annotations

from pathlib import Path

import torch

LIBRARY = Path(__file__).parent / "librecsys_opt.so"
CUDA_LIBRARY = Path(__file__).parent / "librecsys_opt_cuda.so"

if not LIBRARY.exists():
    raise ImportError(
        f"{LIBRARY} is missing: the native code is not built; run scripts/setup.sh or pip install ."
    )
torch.ops.load_library(LIBRARY)
if torch.version.cuda and CUDA_LIBRARY.exists():
    torch.ops.load_library(CUDA_LIBRARY)
