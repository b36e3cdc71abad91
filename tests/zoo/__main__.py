"""`python -m tests.zoo DIR_OR_FILE...`: is every kind of model served right, at the defaults and in both layouts?

`make zoo` runs it on the tiny models of random weights that llama.cpp's own tests write, one for nearly every
architecture. Real model files can be given too. Each model and layout runs in a process of its own. It must load, or be
refused with a reason. Then it must pass the checks of tests.zoo.checks. Exits with 1 unless all are right.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scheduler.config import KV_LAYOUTS
from scheduler.llama.model import LLAMA_CPP_VERSION
from tests.zoo.table import PAGE, RESULTS, put_table

AT_A_TIME = 2
SECONDS = 900


def main() -> int:
    options = _options()
    files = sorted(_files(options.paths, options.only))
    layouts = options.layouts.split(",")
    rows: dict[str, Any] = {}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for file, layout, row in pool.map(lambda each: (*each, check(*each)), [(f, x) for f in files for x in layouts]):
            rows.setdefault(file.stem, {})[layout] = row
            print(f"{'BAD ' if is_wrong(row) else 'ok  '} {file.stem:28} {layout:6} {summary(row)}", flush=True)
    each = [row for layouts in rows.values() for row in layouts.values()]
    num_right = sum(not is_wrong(row) for row in each)
    print(f"{num_right} of {len(each)} are right; {sum('refused' in row for row in each)} of them are refused")
    if options.json:
        command = shlex.join(["python", "-m", "tests.zoo", *sys.argv[1:]])
        write_results(options.json, {"command": command, "llama_cpp_python": LLAMA_CPP_VERSION, "models": rows})
    if options.docs:
        put_table(PAGE, RESULTS)
    return int(num_right != len(each))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, help="model files, or folders with model files")
    parser.add_argument("--layouts", default=",".join(KV_LAYOUTS))
    parser.add_argument("--only", default="", help="only files with this part in their name")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--docs", action="store_true", help=f"write the table of docs/{PAGE.name} from {RESULTS.name}")
    return parser.parse_args()


def _files(paths: list[Path], only: str) -> Iterator[Path]:
    for path in paths:
        for file in [path] if path.is_file() else path.glob("*.gguf"):
            if only in file.name:
                yield file.resolve()


def check(file: Path, layout: str) -> dict[str, Any]:
    """Returns the row of a report. `died` is the end of a process that returned none."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.zoo.one", str(file), layout],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"died": f"still not ready after {SECONDS} s"}
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    lines = done.stderr.strip().splitlines()
    said = next((line for line in lines if "GGML_ASSERT" in line), lines[-1] if lines else "")
    return {"died": f"exit code {done.returncode}: {said[-200:]}"}


def is_wrong(row: dict[str, Any]) -> bool:
    return "died" in row or bool(row.get("wrong"))


def summary(row: dict[str, Any]) -> str:
    for name in ("died", "refused"):
        if name in row:
            return f"{name}: {row[name]}"
    if "generates" in row:
        return "an encoder"
    seen = f"notices {row['notices']}" if "notices" in row else "notices nothing"
    cached, wrong = row.get("cached", {}), row.get("wrong", "")
    return f"{row['layout']}, moves {row['tier']}, cached {cached}, {seen} {wrong}"


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Writes one line per model and layout, so that a difference shows what changed."""
    *head, (name, models) = results.items()
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head]
    blocks = []
    for model, layouts in models.items():
        rows = ",\n".join(f"      {json.dumps(layout)}: {json.dumps(row)}" for layout, row in layouts.items())
        blocks.append(f"    {json.dumps(model)}: {{\n{rows}\n    }}")
    body = ",\n".join(blocks)
    path.write_text("\n".join(["{", *lines, f"  {json.dumps(name)}: {{", body, "  }", "}"]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
