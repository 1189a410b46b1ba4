"""The library's exceptions. Messages name the value, the place, the limit and the remedy.

Only the command line turns them into exit codes.
"""


class RecsysOptError(Exception):
    """A fault in the work itself (exit code 1)."""


class InputError(RecsysOptError, ValueError):
    """Arguments, a file or a configuration that the caller must change (exit code 2)."""


class BatchError(InputError, RuntimeError):
    """Ids, offsets or weights that do not fit a table; a RuntimeError too, as torch's own modules raise."""


class InfeasibleError(RecsysOptError):
    """No solution exists under the given limits (exit code 3)."""
