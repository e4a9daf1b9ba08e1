"""Whether a run's summary is sound: check_summary.py RUN_DIR [SUMMARY_JSON].

Prints one line for each thing that is wrong and leaves with 1, or says what was found and with 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema

from orchestrator.summary import summary_schema

LARGEST_DIFFERENCE = 1e-3
"""Of the library's outputs from torch's, as a share of the largest output."""


def problems_of(summary: dict[str, Any], run_dir: Path) -> list[str]:
    """What is wrong with a summary; empty when it is sound."""
    try:
        jsonschema.validate(summary, summary_schema())
    except jsonschema.ValidationError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "the summary"
        return [f"{where}: {error.message}"]
    found = []
    if summary["state"] != "done":
        found.append(f"state is {summary['state']}, not done: {summary['error']}")
    if not summary["targets"]:
        found.append("there are no targets")
    for target in summary["targets"]:
        found += [f"{target['target']}: {text}" for text in _target_problems(target, run_dir)]
    return found


def _target_problems(target: dict[str, Any], run_dir: Path) -> list[str]:
    found = []
    final, floor, check = target["final"], target["accuracy_floor"], target["library_check"]
    if target["simulated"]:
        found.append("the latencies are simulated")
    if target["speedup"] is None or target["speedup"] <= 1.0:
        found.append(f"the speed-up is {target['speedup']}")
    if target["baseline"] is None or final is None:
        found.append("the baseline or the final network is missing")
    elif floor is None or final["val_accuracy"] < floor:
        found.append(f"validation accuracy {final['val_accuracy']} is below the floor {floor}")
    if check is None:
        found.append("the exported library was not checked")
    elif check["max_abs_difference"] > LARGEST_DIFFERENCE * max(check["max_abs_output"], 1e-6):
        found.append(
            f"the library differs from torch by {check['max_abs_difference']} "
            f"where the largest output is {check['max_abs_output']}"
        )
    if not target["artifacts"]:
        found.append("there are no artefacts")
    for what, path in target["artifacts"].items():
        if Path(path).is_absolute() or not (run_dir / path).exists():
            found.append(f"artefact {what} is not at {path} below the run folder")
    return found


def main(arguments: list[str]) -> int:
    """Check the summary of the run folder named first, or the one in the file named second."""
    run_dir = Path(arguments[0])
    path = Path(arguments[1]) if len(arguments) > 1 else run_dir / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    found = problems_of(summary, run_dir)
    for text in found:
        print(f"{path}: {text}", file=sys.stderr)
    if not found:
        for target in summary["targets"]:
            print(f"{target['target']}: {target['speedup']:.2f}x, sound")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
