"""Writes benchmarks/results/fuzz_criteo_reader.json from the logs of fuzzing runs (tests/fuzz/run.sh).

python tests/fuzz/record.py CLANG_VERSION LOG [LOG ...]
"""

import re
import sys
from pathlib import Path

from recsys_opt.bench.record import write_record

ROOT = Path(__file__).resolve().parent.parent.parent


def seconds(text: str, which: str) -> float:
    minutes, s = re.search(rf"^{which}\s+(\d+)m([\d.]+)s", text, re.MULTILINE).groups()  # type: ignore[union-attr]
    return 60 * int(minutes) + float(s)


def read(log: Path) -> dict[str, object]:
    text = log.read_text(errors="replace")
    inputs = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    if inputs is None:
        raise SystemExit(f"{log} is not the log of a run that ended")
    return {
        "inputs": int(inputs[1]),
        "cpu_minutes": round((seconds(text, "user") + seconds(text, "sys")) / 60, 2),
        "coverage_points": int(re.findall(r" cov: (\d+) ", text)[-1]),
        "finds": len(re.findall(r"^SUMMARY: ", text, re.MULTILINE)),
    }


if __name__ == "__main__":
    rows = [read(Path(log)) for log in sys.argv[2:]]
    target = ROOT / "benchmarks" / "results" / "fuzz_criteo_reader.json"
    totals = {key: round(sum(row[key] for row in rows), 2) for key in ("inputs", "cpu_minutes", "finds")}  # type: ignore[misc]
    write_record(target, "fuzz_criteo_reader", rows, clang=sys.argv[1], total=totals)
    print(f"{target}: {totals}")
