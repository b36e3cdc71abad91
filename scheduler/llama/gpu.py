"""The memory of the GPUs that llama.cpp uses."""

import ctypes
from functools import cache
from typing import Any, Final, NamedTuple

import llama_cpp.llama_cpp as lib

GPU_TYPES: Final = {1, 2}
"""ggml's numbers of device types: GPUs with memory of their own, and those that use the machine's memory."""


class GPUMemory(NamedTuple):
    """Bytes of all GPUs together."""

    free: int
    total: int


def memory() -> GPUMemory:
    """Returns zeros without a GPU."""
    ggml = _ggml()
    free = total = 0
    for index in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(index)
        if ggml.ggml_backend_dev_type(device) in GPU_TYPES:
            its_free, its_total = ctypes.c_size_t(), ctypes.c_size_t()
            ggml.ggml_backend_dev_memory(device, ctypes.byref(its_free), ctypes.byref(its_total))
            free, total = free + its_free.value, total + its_total.value
    return GPUMemory(free, total)


@cache
def _ggml() -> Any:
    """Returns ggml's functions, which llama-cpp-python does not declare. Only an engine with a GPU needs them."""
    ggml = lib._lib
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_type.restype = ctypes.c_int
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    ggml.ggml_backend_dev_memory.restype = None
    return ggml
