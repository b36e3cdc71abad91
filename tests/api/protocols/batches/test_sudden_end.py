"""Batches survive the end of the process at any instant."""

import subprocess
import sys
from pathlib import Path

from tests.api.servers import SECONDS

ROOT = Path(__file__).parents[4]
INSTANTS = 12


def test_each_line_is_answered_once_whenever_the_process_ends(tmp_path: Path, model_path: str) -> None:
    command = [sys.executable, "-m", "tests.api.protocols.batches.sudden_end", model_path, str(tmp_path), str(INSTANTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"tried {INSTANTS} of ")
