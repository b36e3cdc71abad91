"""The options that a server and its models are started with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from api.models.files import SETTINGS_NAME
from scheduler.config import EngineConfig

if TYPE_CHECKING:
    from api.models.defaults import ModelDefaults

DEFAULT_PORT = 39281
CacheScope = Literal["server", "tenant"]
"""Who shares prefixes in the KV cache: all clients, or the requests of one tenant."""


def is_loopback(host: str) -> bool:
    """Whether only clients on this machine can connect to an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _nothing(_name: str) -> None:
    return None


@dataclass(frozen=True)
class ModelOptions:
    """The options of a served model."""

    name: str
    """The name that the user gave. Clients request the model by this name or by an alias."""
    path: Path
    engine: EngineConfig
    aliases: tuple[str, ...] = ()
    defaults: "ModelDefaults | None" = None
    """Values from model.yaml for fields that a request leaves out."""
    given: Mapping[str, object] = field(default_factory=dict, compare=False)
    """The flags that are set for this model, without aliases."""
    inherited: Mapping[str, object] = field(default_factory=dict, compare=False)
    """The server's flags, which apply where `given` has no value. `difference` ignores those of `wanted`."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.name, *self.aliases)))

    def difference(self, wanted: "ModelOptions") -> str:
        """Describes the first difference from options wanted under the same name; empty if there is none.

        Compares only the file, the flags in `wanted.given` and the aliases.
        """
        if wanted.path.resolve() != self.path.resolve():
            return f"its file is {self.path}"
        chosen = {**self.inherited, **self.given}
        for name, value in wanted.given.items():
            if chosen.get(name, getattr(self.engine, name, None)) != value:
                return f"its --{name.replace('_', '-')} differs"
        other = next((alias for alias in wanted.aliases if alias not in self.names), None)
        return "" if other is None else f"it has no alias {other}"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The options of a server apart from its models. The server's record contains them too."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 takes any free port."""
    unix_socket: str | None = None
    """The path of a Unix socket to listen on, instead of the host and port."""
    tls_cert: str | None = None
    """The file with the server's certificate; None for plain HTTP."""
    tls_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_connections: int = 4096
    """Maximum number of connections in all; 0 is no limit."""
    max_connections_per_address: int = 3072
    """Maximum number of connections from one address; 0 is no limit."""
    max_waiting: int = 1024
    """Maximum number of requests to one model that wait for memory or a sequence. Further requests are refused."""
    grace_seconds: float = 30.0
    """Seconds that running requests may continue after the server begins to stop."""
    drain_delay: float = 0.0
    """Seconds that a server which begins to stop answers at least, so that load balancers notice it."""
    max_concurrent: int = 0
    """Sequences and requests for embeddings that run and wait, of all tenants together. 0 is no limit, as below."""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    """Of all tenants together: prompt tokens and answer tokens."""
    tenant_max_waiting: int = 0
    """The limits of a tenant that has none of its own."""
    tenant_max_concurrent: int = 0
    tenant_requests_per_minute: int = 0
    tenant_tokens_per_minute: int = 0
    files_size: int = 32 * 1024**3
    """Bytes that the files of all clients may have together."""
    tenant_files_size: int = 8 * 1024**3
    """Bytes that the files of one tenant may have."""
    request_timeout: float = 0.0
    """Seconds after which a request ends that sets no limit itself; 0 is never."""
    cache_scope: CacheScope | None = None
    """None for the default, which depends on whether the server demands keys."""
    log_format: str = "text"
    """text, or json for one JSON object per line."""
    log_requests: bool = False
    """Whether the log has a line for each request."""
    idle_limit: float = 0.0
    """Seconds without requests after which a model is unloaded until the next request; 0 is never."""
    auth: bool | None = None
    """Whether clients need API keys; None if only clients of this machine need none."""
    keys_file: str | None = None
    """A TOML file with further keys."""
    metrics_public: bool = False
    """Whether metrics need no key even if other operations do."""

    @property
    def stop_seconds(self) -> float:
        """How long running requests may continue at most after the server begins to stop."""
        return max(self.grace_seconds, self.drain_delay)

    @property
    def demands_keys(self) -> bool:
        """Whether clients need API keys."""
        is_local = self.unix_socket is not None or is_loopback(self.host)
        return not is_local if self.auth is None else self.auth


@dataclass(frozen=True)
class ServerOptions(ServerSettings):
    """The options of a server and its first model."""

    first: ModelOptions
    """The model served from the start."""
    on_demand: Callable[[str], ModelOptions | None] = field(default=_nothing, compare=False)
    """Returns the options of a model on disk by its name, to load it for a request; None if there is none."""
    model_flags: Mapping[str, object] = field(default_factory=dict, compare=False)
    """The flags, by name, of models that are started later. A start request overrides them."""
    log_file: str | None = None
    """The file to which the caller redirected stderr. It is only recorded, never opened."""

    @property
    def first_engine(self) -> EngineConfig:
        """The configuration of the first model's engine."""
        return replace(self.first.engine, log_format=self.log_format)

    @property
    def loads_on_demand(self) -> bool:
        return self.on_demand is not _nothing


def own_defaults(model_path: Path) -> "ModelDefaults | None":
    """The defaults in the model.yaml beside a model; None without one. Raises ModelFilesError if it is invalid."""
    if not model_path.with_name(SETTINGS_NAME).exists():
        return None
    from api.models.defaults import read_defaults  # imported late: few models have them, and pydantic imports slowly

    return read_defaults(model_path)
