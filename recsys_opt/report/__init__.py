"""Reports: self-contained pages made from the files of a run."""

from recsys_opt.report.comparison import comparison
from recsys_opt.report.run import write_run_report

__all__ = ["comparison", "write_run_report"]
