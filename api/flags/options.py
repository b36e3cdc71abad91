"""The options that a server and its models are started with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from api.models.files import SETTINGS_NAME
from scheduler.config import EngineConfig

if TYPE_CHECKING:
    from api.models.defaults import ModelDefaults

DEFAULT_PORT = 39281


def _nothing(_name: str) -> None:
    return None


@dataclass(frozen=True)
class ModelOptions:
    """What a model is served with."""

    name: str
    """As the user gave it; clients ask for it by this name or by an alias."""
    path: Path
    engine: EngineConfig
    aliases: tuple[str, ...] = ()
    defaults: "ModelDefaults | None" = None
    """For what requests leave open, from its model.yaml."""
    given: Mapping[str, object] = field(default_factory=dict, compare=False)
    """The flags that somebody set for this model, without aliases."""
    inherited: Mapping[str, object] = field(default_factory=dict, compare=False)
    """The server's own flags, which hold where `given` says nothing. As a wish for a model that runs they are none."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.name, *self.aliases)))

    def difference(self, wanted: "ModelOptions") -> str:
        """The first difference from what is wanted by the same name, in words; empty if there is none.

        What nobody wants otherwise is no difference.
        """
        if wanted.path.resolve() != self.path.resolve():
            return f"it is {self.path}"
        chosen = {**self.inherited, **self.given}
        for name, value in wanted.given.items():
            if chosen.get(name, getattr(self.engine, name, None)) != value:
                return f"it has another --{name.replace('_', '-')}"
        other = next((alias for alias in wanted.aliases if alias not in self.names), None)
        return "" if other is None else f"it is not called {other}"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The flags that are about a server, as options; the server's record holds them, too."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 takes any free port."""
    cors_origins: tuple[str, ...] = ()
    max_waiting: int = 1024
    """Requests that may wait for memory or a sequence before new ones are refused."""
    grace_seconds: float = 30.0
    """How long running streams may go on after the server was told to stop."""
    idle_limit: float = 0.0
    """Seconds after which a model that nobody uses is unloaded, until somebody asks for it; 0 is never."""


@dataclass(frozen=True)
class ServerOptions(ServerSettings):
    """What a server is started with."""

    first: ModelOptions
    """The model that it serves from the start."""
    on_demand: Callable[[str], ModelOptions | None] = field(default=_nothing, compare=False)
    """Finds the model on disk that a request asks for and that is not served yet, if it may be loaded."""
    model_flags: Mapping[str, object] = field(default_factory=dict, compare=False)
    """The flags for models that are started later, by name; a start request goes before them."""
    log_file: str | None = None
    """Where the caller sent stderr; only recorded, never opened."""

    @property
    def loads_on_demand(self) -> bool:
        return self.on_demand is not _nothing


def own_defaults(model_path: Path) -> "ModelDefaults | None":
    """The defaults in the model.yaml beside a model; None without one. Raises ModelFilesError."""
    if not model_path.with_name(SETTINGS_NAME).exists():
        return None
    from api.models.defaults import read_defaults  # only now: few models have them, and pydantic takes long to import

    return read_defaults(model_path)
