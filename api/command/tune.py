"""`cortex tune`: measures a model in a process of its own, with a spinner."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from api.command.launch import CommandError
from api.command.terminal import spinner
from api.engine.spawn import ENGINE_ENVIRONMENT
from scheduler.config import EngineConfig


def measure(model: str, config: EngineConfig, seconds: float) -> dict[str, Any]:
    """The measurements, and the settings kept for the model's next engines. Raises CommandError if it fails."""
    command = [sys.executable, "-P", "-m", "scheduler.llama.tuning", json.dumps(asdict(config)), str(seconds)]
    last: dict[str, Any] = {}
    with (
        spinner(f"measuring {model}"),
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**ENGINE_ENVIRONMENT, **os.environ},
        ) as process,
    ):
        assert process.stdout is not None, "it is a pipe"
        for line in process.stdout:
            last = json.loads(line)
    if "tuning" not in last:
        raise CommandError(last.get("error") or f"measuring {model} ended with exit code {process.returncode}")
    return last
