"""GET /version: the versions of the server and of its llama.cpp."""

from dataclasses import asdict
from importlib.metadata import version as version_of
from typing import Any, Literal

import trio

from api import package_version
from api.protocols.call import Call
from api.protocols.types import Answer
from api.text.tokenizer import llama_build


class LlamaCpp(Answer):
    commit: str
    """Short commit id, with `-dirty` if files differed; `unknown` if llama.cpp was built outside of its repository."""
    flags: dict[str, dict[str, str]]
    """Build flags and features of the processor, by backend and name."""
    package: str
    """The version of llama-cpp-python, which calls llama.cpp."""


class Version(Answer):
    name: Literal["cortex"]
    version: str
    llama_cpp: LlamaCpp


async def version(call: Call[None]) -> dict[str, Any]:  # noqa: ARG001 - it is the same for all calls
    build = await trio.to_thread.run_sync(llama_build)  # this may look for GPUs
    llama_cpp = asdict(build) | {"package": version_of("llama-cpp-python")}
    return {"name": "cortex", "version": package_version(), "llama_cpp": llama_cpp}
