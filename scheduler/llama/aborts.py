"""Why llama.cpp ends this process: the text of a failed assertion, or of an exception that nothing catches."""

import ctypes
import os
import re
from typing import Any, Final

from scheduler.crash_record import CrashRecord
from scheduler.llama.model import LIBRARY

_callbacks: Final[list[Any]] = []
"""Kept alive, because llama.cpp may call them at any time."""


def report_aborts(record: CrashRecord) -> None:
    """Write llama.cpp's reason into the record before llama.cpp aborts this process, or an exception of C++ ends it."""
    set_abort_callback = getattr(LIBRARY, "ggml_set_abort_callback", None)
    if set_abort_callback is not None:

        def on_abort(text: bytes) -> None:
            os.write(2, text + b"\n")
            record.explain(re.sub(r"^\S*/", "", text.decode(errors="replace")))  # without the source file's folder

        _callbacks.append(ctypes.CFUNCTYPE(None, ctypes.c_char_p)(on_abort))
        set_abort_callback(_callbacks[-1])
    set_terminate = getattr(LIBRARY, "_ZSt13set_terminatePFvvE", None)  # std::set_terminate
    if set_terminate is not None:

        def on_terminate() -> None:
            record.capture_stderr()
            previous()  # writes the exception to stderr and aborts

        _callbacks.append(ctypes.CFUNCTYPE(None)(on_terminate))
        set_terminate.restype = ctypes.CFUNCTYPE(None)
        previous = set_terminate(_callbacks[-1])
