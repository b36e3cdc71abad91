"""The options of a server: as flags of the command line, and as the value that the server is started with."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from api.home import home
from api.models.files import SETTINGS_NAME, AmbiguousNameError, ModelNotFoundError, resolve_name
from scheduler.config import FLASH_ATTN, KV_LAYOUTS, KV_TYPES, POOLINGS, EngineConfig

if TYPE_CHECKING:
    from api.models.defaults import ModelDefaults

DEFAULT_PORT = 39281
MAX_NAME_LENGTH = 512


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
    """The flags that somebody set, without aliases."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.name, *self.aliases)))

    def difference(self, wanted: "ModelOptions") -> str:
        """What of these options, by the same name, is not as wanted; empty if all is. What nobody set is as wanted."""
        if wanted.path.resolve() != self.path.resolve():
            return f"it is {self.path}"
        for name, value in wanted.given.items():
            if self.given.get(name) != value:
                return f"it has another --{name.replace('_', '-')}"
        other = next((alias for alias in wanted.aliases if alias not in self.names), None)
        return "" if other is None else f"it is not called {other}"


@dataclass(frozen=True)
class ServerOptions:
    """What a server is started with."""

    first: ModelOptions
    """The model that it serves from the start."""
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
    on_demand: Callable[[str], ModelOptions | None] = field(default=_nothing, compare=False)
    """Finds the model on disk that a request asks for and that is not served yet, if it may be loaded."""
    log_file: str | None = None
    """Where the caller sent stderr; only recorded, never opened."""

    @property
    def loads_on_demand(self) -> bool:
        return self.on_demand is not _nothing


def _one_of(*choices: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}.")
        return value

    return check


_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_UNITS |= {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def num_bytes(size: str) -> int:
    """Of a size such as 512MiB, 4G or 0. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", size.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{size!r} is not a size such as 512MiB, 4GiB or 0.")
    number = float(match[1]) * _UNITS[match[2].upper()]
    if number >= 2**63:
        raise ValueError(f"{size!r} is more than any machine has.")
    return int(number)


def _names(values: list[str]) -> list[str]:
    for value in values:
        if not 1 <= len(value) <= MAX_NAME_LENGTH:
            raise typer.BadParameter(f"a name has 1 to {MAX_NAME_LENGTH} characters.")
    return values


def _size(value: str | None) -> str | None:
    if value is not None:
        try:
            num_bytes(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return value


@dataclass(frozen=True)
class ModelFlags:
    """The flags that are about one model; each is read from CORTEX_... too."""

    ctx_len: Annotated[
        int | None,
        typer.Option(
            envvar="CORTEX_CTX_LEN",
            min=64,
            help="Tokens of one request, prompt and answer together. (default: 8192, or what the model allows)",
        ),
    ] = None
    max_seqs: Annotated[
        int | None,
        typer.Option(
            envvar="CORTEX_MAX_SEQS", min=1, max=255, help="Answers generated at once. (default: by the machine)"
        ),
    ] = None
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            envvar="CORTEX_KV_TOKENS",
            min=64,
            help="Tokens of KV memory for all requests together. (default: by the model and the machine)",
        ),
    ] = None
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            envvar="CORTEX_BATCH_TOKENS",
            min=32,
            max=8192,
            help="Token budget of one step. (default: 512, or as tuned)",
        ),
    ] = None
    itl_target: Annotated[
        float | None,
        typer.Option(
            envvar="CORTEX_ITL_TARGET",
            min=0.001,
            max=3600.0,
            metavar="SECONDS",
            help="How long streams may wait for their next token while prompts are read. (default: by the machine)",
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            envvar="CORTEX_THREADS", min=1, max=1024, help="CPU threads to compute with. (default: by the machine)"
        ),
    ] = None
    gpu_layers: Annotated[
        int | None,
        typer.Option(envvar="CORTEX_GPU_LAYERS", min=-1, help="Layers to put on the GPU; -1 is all. (default: all)"),
    ] = None
    kv_type: Annotated[
        str,
        typer.Option(
            envvar="CORTEX_KV_TYPE",
            metavar="|".join(KV_TYPES),
            callback=_one_of(*KV_TYPES),
            help="Number format of the KV memory.",
        ),
    ] = "f16"
    kv_layout: Annotated[
        str,
        typer.Option(
            envvar="CORTEX_KV_LAYOUT",
            metavar="|".join(KV_LAYOUTS),
            callback=_one_of(*KV_LAYOUTS),
            help="One pool of KV memory for all, or a lane for each sequence; auto is lanes where they fit.",
        ),
    ] = "auto"
    flash_attn: Annotated[
        str,
        typer.Option(
            envvar="CORTEX_FLASH_ATTN",
            metavar="|".join(FLASH_ATTN),
            callback=_one_of(*FLASH_ATTN),
            help="Whether to compute with flash attention.",
        ),
    ] = "auto"
    host_cache: Annotated[
        str | None,
        typer.Option(
            envvar="CORTEX_HOST_CACHE",
            metavar="SIZE",
            callback=_size,
            help="Memory for KV that was evicted, such as 4GiB; 0 is none. (default: a quarter of what is available)",
        ),
    ] = None
    disk_cache: Annotated[
        str | None,
        typer.Option(
            envvar="CORTEX_DISK_CACHE",
            metavar="SIZE",
            callback=_size,
            help="Disk for KV that was evicted from memory, kept over restarts. (default: a tenth of what is free)",
        ),
    ] = None
    backend_top_k: Annotated[
        int,
        typer.Option(
            envvar="CORTEX_BACKEND_TOP_K",
            min=0,
            max=1024,
            help="Let the GPU find so many of the best tokens, and draw from these where possible. 0 is off.",
        ),
    ] = 0
    pooling: Annotated[
        str,
        typer.Option(
            envvar="CORTEX_POOLING",
            metavar="|".join(POOLINGS),
            callback=_one_of(*POOLINGS),
            help="How vectors of texts are made of their tokens'; auto is as the model's file says.",
        ),
    ] = "auto"
    alias: Annotated[
        list[str],
        typer.Option(
            envvar="CORTEX_ALIAS",
            metavar="NAME",
            callback=_names,
            help="Another name for the model. May be repeated.",
        ),
    ] = field(default_factory=list)

    def model_options(self, model: str, model_path: Path) -> ModelOptions:
        """Raises ModelFilesError for a model.yaml that cannot be used."""
        own = own_defaults(model_path)
        gpu_layers = own.ngl if own and self.gpu_layers is None else self.gpu_layers
        engine = EngineConfig(
            model_path=str(model_path),
            ctx_len=self.ctx_len or (own and own.ctx_len) or None,
            max_seqs=self.max_seqs,
            kv_tokens=self.kv_tokens,
            kv_layout=self.kv_layout,
            batch_tokens=self.batch_tokens,
            itl_target=self.itl_target,
            threads=self.threads,
            gpu_layers=-1 if gpu_layers is None else gpu_layers,
            kv_type=self.kv_type,
            flash_attn=self.flash_attn,
            host_cache=None if self.host_cache is None else num_bytes(self.host_cache),
            disk_cache=None if self.disk_cache is None else num_bytes(self.disk_cache),
            disk_folder=str(home() / "kv"),
            tuning_folder=str(home() / "tuned"),
            backend_top_k=self.backend_top_k,
            pooling=self.pooling,
        )
        return ModelOptions(model, model_path, engine, tuple(self.alias), own, self._given())

    def _given(self) -> dict[str, object]:
        flags = {item.name: getattr(self, item.name) for item in fields(ModelFlags) if item.default is not MISSING}
        return {name: value for name, value in flags.items() if value != getattr(ModelFlags, name)}

    def start_request(self, model: str, path: Path) -> dict[str, Any]:
        """The body with which a running server is asked to serve this model, too."""
        flags = {item.name: getattr(self, item.name) for item in fields(ModelFlags)}
        return {"model": model, "path": str(path)} | flags


def own_defaults(model_path: Path) -> "ModelDefaults | None":
    """What the model.yaml beside a model says, if there is one. Raises ModelFilesError."""
    if not model_path.with_name(SETTINGS_NAME).exists():
        return None
    from api.models.defaults import read_defaults  # only now: few models have them, and pydantic takes long to import

    return read_defaults(model_path)


@dataclass(frozen=True)
class ServerFlags(ModelFlags):
    """The flags that `cortex run` and `cortex serve` share."""

    host: Annotated[str, typer.Option(envvar="CORTEX_HOST", help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, typer.Option(envvar="CORTEX_PORT", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = DEFAULT_PORT
    cors_origin: Annotated[
        list[str],
        typer.Option(
            envvar="CORTEX_CORS_ORIGIN",
            metavar="ORIGIN",
            help="Web origin whose pages may call the API; '*' is any. May be repeated.",
        ),
    ] = field(default_factory=list)
    max_waiting: Annotated[
        int,
        typer.Option(envvar="CORTEX_MAX_WAITING", min=0, help="Requests that may wait before new ones are refused."),
    ] = 1024
    grace: Annotated[
        float,
        typer.Option(
            envvar="CORTEX_GRACE",
            min=0,
            max=86400,
            metavar="SECONDS",
            help="How long running answers may go on after a stop.",
        ),
    ] = 30.0
    idle_limit: Annotated[
        float,
        typer.Option(
            envvar="CORTEX_IDLE_LIMIT",
            min=0,
            metavar="SECONDS",
            help="Unload a model that was idle for so long; the next request loads it again. 0 is never.",
        ),
    ] = 0.0
    on_demand: Annotated[
        bool,
        typer.Option(
            "--on-demand/--no-on-demand",
            envvar="CORTEX_ON_DEMAND",
            help="Load a model that lies on disk when a request asks for it.",
        ),
    ] = False

    def arguments(self) -> list[str]:
        """The same flags for another command line.

        Defaults are spelled out: a variable of the environment must not win over what was decided here.
        """
        return list(self._arguments())

    def _arguments(self) -> Iterator[str]:
        for item in fields(self):
            value = getattr(self, item.name)
            name = "--" + item.name.replace("_", "-")
            if isinstance(value, bool):
                yield name if value else name.replace("--", "--no-", 1)
            elif isinstance(value, list):
                yield from (f"{name}={one}" for one in value)
            elif value is not None:
                yield f"{name}={value}"

    def options(self, model: str, model_path: Path, log_file: str | None = None) -> ServerOptions:
        """The options of a server for `model`, whose file is `model_path`."""
        return ServerOptions(
            first=self.model_options(model, model_path),
            host=self.host,
            port=self.port,
            cors_origins=tuple(self.cors_origin),
            max_waiting=self.max_waiting,
            grace_seconds=self.grace,
            idle_limit=self.idle_limit,
            on_demand=self._on_disk if self.on_demand else _nothing,
            log_file=log_file,
        )

    def _on_disk(self, name: str) -> ModelOptions | None:
        """The options of a model that lies on disk by this name, which is never a path; None if none does.

        Raises ModelFilesError for one that cannot be used, or of which there are several.
        """
        try:
            path = resolve_name(name)
        except AmbiguousNameError:
            raise
        except ModelNotFoundError:
            return None
        return replace(self, alias=[]).model_options(name, path)


def with_server_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a typer command every flag of ServerFlags, or those of these names; it receives its parameter `flags`.

    Typer reads a command's parameters from its signature, so the decorated one has a parameter per flag.
    """
    return functools.partial(_with_flags, [flag for flag in fields(ServerFlags) if not names or flag.name in names])


def _with_flags(flags: "list[Field[Any]]", command: Callable[..., None]) -> Callable[..., None]:
    types = get_type_hints(ServerFlags, include_extras=True)
    flag_parameters = [
        inspect.Parameter(
            flag.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=flag.default if flag.default_factory is MISSING else flag.default_factory(),
            annotation=types[flag.name],
        )
        for flag in flags
    ]
    signature = inspect.signature(command, eval_str=True)
    own_parameters = [parameter for name, parameter in signature.parameters.items() if name != "flags"]

    @functools.wraps(command)
    def decorated(**arguments: Any) -> None:
        given = ServerFlags(**{flag.name: arguments.pop(flag.name) for flag in flags})
        command(flags=given, **arguments)

    decorated.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=own_parameters + flag_parameters
    )
    return decorated
