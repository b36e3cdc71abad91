"""llama.cpp's reason for an abort is in the crash record of the engine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from scheduler import crash_record
from scheduler.crash_record import CrashRecord

ROOT = Path(__file__).parents[3]
ABORT = """
import sys
import llama_cpp.llama_cpp as lib
from scheduler.crash_record import CrashRecord
from scheduler.llama.model import report_aborts
report_aborts(CrashRecord(int(sys.argv[1])).explain)
lib._lib.ggml_abort(b"/home/me/ggml.c", 7, b"GGML_ASSERT(%s) failed", b"1 == 2")
"""


def test_the_reason_of_an_abort_is_recorded_and_logged() -> None:
    fd = crash_record.create()
    ended = subprocess.run([sys.executable, "-c", ABORT, str(fd)], pass_fds=[fd], cwd=ROOT, capture_output=True)
    record = CrashRecord(fd)
    os.close(fd)
    assert ended.returncode == -signal.SIGABRT
    assert record.reason == "ggml.c:7: GGML_ASSERT(1 == 2) failed"
    assert ended.stderr.decode().strip().endswith("/home/me/ggml.c:7: GGML_ASSERT(1 == 2) failed")
