"""The raw numbers: one JSON file a run while runs are made, one parquet file of all of them in the repository.

    PYTHONPATH=benchmarks python -m evidence.raw outputs/evidence benchmarks/results/evidence/runs.parquet

A row is a run. `curve` has an entry for each evaluation, with the number of right samples and of distinct right routes
of every test problem; `log` is what the trainer logged.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Result = dict[str, Any]
_COUNTS = ("right", "distinct")


def finished(folder: Path) -> dict[str, Result]:
    """The results of all finished runs by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def write(results: dict[str, Result], path: Path) -> None:
    """One row a run. Fields that not all runs have are text, so that the columns are the same for all."""
    rows = []
    for name in sorted(results):
        result = results[name]
        rest = {k: v for k, v in result.items() if k not in ("curve", "log")}
        curve = [{k: v for k, v in point.items() if k not in _COUNTS} for point in result["curve"]]
        row = {"id": name, "run": json.dumps(rest), "curve": json.dumps(curve), "log": json.dumps(result["log"])}
        rows.append(row | {k: [point[k] for point in result["curve"]] for k in _COUNTS})
    counts = pa.list_(pa.list_(pa.int8()))
    text = [pa.field(name, pa.string()) for name in ("id", "run", "curve", "log")]
    schema = pa.schema([*text, *(pa.field(name, counts) for name in _COUNTS)])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def read(path: Path) -> dict[str, Result]:
    """What `write` was given."""
    results = {}
    for row in pq.read_table(path).to_pylist():
        points = zip(json.loads(row["curve"]), row["right"], row["distinct"], strict=True)
        curve = [{**point, "right": right, "distinct": distinct} for point, right, distinct in points]
        results[row["id"]] = {**json.loads(row["run"]), "curve": curve, "log": json.loads(row["log"])}
    return results


def add(folder: Path, path: Path) -> int:
    """Put the finished runs into the file. Those that are there stay, unless they were made again. How many it has."""
    results = (read(path) if path.exists() else {}) | finished(folder)
    write(results, path)
    return len(results)


if __name__ == "__main__":
    print(f"{add(Path(sys.argv[1]), Path(sys.argv[2]))} runs in {sys.argv[2]}")
