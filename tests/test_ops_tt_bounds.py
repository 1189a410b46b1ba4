"""What CUDA kernels do about ids out of range is chosen in Python; tests/simt tests what they do."""

import pytest

from recsys_opt import ops
from recsys_opt.errors import InputError

HAS_KERNELS = ops.has_cuda_kernel("tt_embedding_bag")


def test_unknown_modes_are_refused():
    with pytest.raises(InputError, match="bounds check 'off'; choose from check, clamp, trust"):
        ops.tt_bounds_check("off")


@pytest.mark.skipif(HAS_KERNELS, reason="this build has CUDA kernels")
def test_without_cuda_kernels_settings_say_what_they_need():
    for change in (lambda: ops.tt_bounds_check("clamp"), ops.tt_allow_tf32, ops.tt_direct_lookups):
        with pytest.raises(InputError, match="needs a build with them"):
            change()
    assert ops.tt_bounds_report() == ops.BoundsReport(0, "")


@pytest.mark.skipif(not HAS_KERNELS, reason="this build has no CUDA kernels")
def test_settings_give_what_was_before():
    assert ops.tt_bounds_check("clamp") == "check"
    assert ops.tt_bounds_check("check") == "clamp"
    assert ops.tt_allow_tf32(True) is False
    assert ops.tt_allow_tf32(False) is True
