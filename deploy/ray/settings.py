"""The settings of the application: `args` in a Serve config file, or `name=value` behind `serve run`."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    """What `cortex serve` takes: a name, or the path of a .gguf file that each machine has."""
    arguments: list[str] = Field(default_factory=list)
    """More flags of `cortex serve`, such as `--auth` and `--keys-file=...`."""
    homes: Path = Path("~/.local/share/cortex-ray")
    """On each machine. Each node has a folder in it as its $CORTEX_HOME."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs of one node. Whole numbers are also its `--threads`, unless `arguments` set them."""
    num_gpus: float = Field(default=0, ge=0)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=2, ge=1)
    target_ongoing_requests: float = Field(default=8, gt=0)
    """Requests for one replica, running and waiting. With more, Serve adds a replica."""
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=300, ge=0)
    grace_seconds: float = Field(default=120, ge=0)
    """How long a replica that is removed may finish its answers."""
    ready_seconds: float = Field(default=600, gt=0)
    """How long a node may take to download and load its model."""
    ingresses: int = Field(default=1, ge=1)
    """Replicas of the ingress, which choose a node for each request and pass answers on."""

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is less than min_replicas")
        return self

    @property
    def homes_folder(self) -> Path:
        return self.homes.expanduser()

    @property
    def node_arguments(self) -> list[str]:
        threads = int(self.num_cpus)
        if threads < 1 or any(argument.startswith("--threads") for argument in self.arguments):
            return self.arguments
        return [f"--threads={threads}", *self.arguments]
