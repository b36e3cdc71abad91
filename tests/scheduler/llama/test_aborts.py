"""llama.cpp's reason for an abort is in the crash record of the engine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from api.engine.spawn import ENGINE_ENVIRONMENT
from scheduler import crash_record
from scheduler.crash_record import CrashRecord

ROOT = Path(__file__).parents[3]
START = """
import sys
import llama_cpp.llama_cpp as lib
from scheduler.crash_record import CrashRecord
from scheduler.llama.aborts import report_aborts
report_aborts(CrashRecord(int(sys.argv[1])))
"""
ABORT = 'lib._lib.ggml_abort(b"/home/me/ggml.c", 7, b"GGML_ASSERT(%s) failed", b"1 == 2")'
THROW = 'lib._lib._ZSt20__throw_out_of_rangePKc(b"no such token")'


def end_of(what: str) -> tuple[int, str, str]:
    """The exit code of a process that does this, its crash record's reason and its stderr."""
    fd = crash_record.create()
    command = [sys.executable, "-c", START + what, str(fd)]
    environment = os.environ | ENGINE_ENVIRONMENT
    ended = subprocess.run(command, pass_fds=[fd], cwd=ROOT, env=environment, capture_output=True, text=True)
    reason = CrashRecord(fd).reason
    os.close(fd)
    return ended.returncode, reason, ended.stderr.strip()


def test_the_reason_of_an_abort_is_recorded_and_logged() -> None:
    code, reason, log = end_of(ABORT)
    assert (code, reason) == (-signal.SIGABRT, "ggml.c:7: GGML_ASSERT(1 == 2) failed")
    assert log.endswith("/home/me/ggml.c:7: GGML_ASSERT(1 == 2) failed")


def test_an_uncaught_exception_of_cpp_is_recorded() -> None:
    code, reason, _ = end_of(THROW)
    assert code == -signal.SIGABRT
    assert reason == "terminate called after throwing an instance of 'std::out_of_range' what(): no such token"
