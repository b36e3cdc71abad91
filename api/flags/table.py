"""The table of flags. Each flag is a row, defined by a field of ModelFlags or ServerFlags.

The table generates the command-line options, the environment variables, the keys of cortex.toml, the body of a start
request, the arguments of a background server, and the table in the README. To add a flag of a model, add a row here and
a field to EngineConfig. To add a flag of a server, add a row here and a field to ServerSettings.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

from api.flags.options import CacheScope, ModelOptions, ServerOptions, ServerSettings, own_defaults
from api.flags.row import MAX_NAME_LENGTH, Flag, Row
from api.home import home
from api.models.files import AmbiguousNameError, ModelNotFoundError, portable, resolve_name
from scheduler.config import DRAFTS, FLASH_ATTN, KV_LAYOUTS, KV_TYPES, POOLINGS, REPACKS, EngineConfig
from scheduler.logs import LOG_FORMATS


@dataclass(frozen=True)
class ModelFlags:
    """The flags of one model. None means that a flag is not set."""

    ctx_len: Annotated[
        int | None,
        Flag(
            min=64,
            help="Maximum tokens of one request, prompt and answer together.",
            default="8192, or the trained length if shorter",
        ),
    ] = None
    max_seqs: Annotated[
        int | None,
        Flag(
            min=1,
            max=255,
            help="Maximum number of sequences that run at once.",
            default="depends on the machine",
            note="The default is 32, or 64 on a GPU. Further requests wait.",
        ),
    ] = None
    kv_tokens: Annotated[
        int | None,
        Flag(
            min=64,
            help="Fixed size of the KV cache in tokens, for all sequences together.",
            default="the size follows the load",
            note="Not together with `--kv-start` or `--kv-max`.",
        ),
    ] = None
    kv_start: Annotated[
        int | None,
        Flag(
            min=256,
            help="Size of the KV cache in tokens at the start. Later it follows the load.",
            default="4096, or less for short contexts",
        ),
    ] = None
    kv_max: Annotated[
        int | None,
        Flag(
            min=256,
            help="Size of the KV cache in tokens at most.",
            default="half of the available memory",
            note="Never more than a context for each sequence. A request that can never fit is refused.",
        ),
    ] = None
    batch_tokens: Annotated[
        int | None,
        Flag(min=32, max=8192, help="Token budget of one step.", default="512, on a GPU 2048, or the tuned value"),
    ] = None
    itl_target: Annotated[
        float | None,
        Flag(
            min=0.001,
            max=3600.0,
            metavar="SECONDS",
            help="Maximum time that streams wait for their next token while prompts are computed.",
            default="depends on the machine",
            note="The default is the time of 128 prompt tokens at the best speed, and at least 30 ms. A shorter time "
            "makes long prompts slower.",
        ),
    ] = None
    stream_interval: Annotated[
        float | None,
        Flag(
            min=0,
            max=60,
            metavar="SECONDS",
            help="Send tokens that follow each other faster than this in one event. 0 sends each token at once.",
            note="Fewer events take less computing time. An answer's first token never waits.",
        ),
    ] = None
    threads: Annotated[
        int | None,
        Flag(
            min=1,
            max=1024,
            help="Number of CPU threads for computation.",
            default="depends on the machine",
            note="The default is the number of physical cores, or the tuned value.",
        ),
    ] = None
    gpu_layers: Annotated[
        int | None,
        Flag(
            min=-1,
            help="Layers to put on the GPU; -1 is all.",
            default="all",
            note="It has no effect if llama.cpp is built without GPU support.",
        ),
    ] = None
    repack: Annotated[
        str | None,
        Flag(
            choices=REPACKS,
            help="Whether Q4_1 weights on a CPU are rewritten in memory, so that they are computed faster. auto is on, "
            "unless the weights of a layer are too small for the number of threads.",
            note="See below.",
        ),
    ] = None
    kv_type: Annotated[str | None, Flag(choices=KV_TYPES, help="Number format of the KV cache.")] = None
    kv_layout: Annotated[
        str | None,
        Flag(
            choices=KV_LAYOUTS,
            help="One KV pool for all sequences, or a lane for each; auto uses lanes if they fit.",
            note="Lanes are fastest on a CPU. They fit if they take at most half of the available memory.",
        ),
    ] = None
    flash_attn: Annotated[str | None, Flag(choices=FLASH_ATTN, help="Whether to use flash attention.")] = None
    host_cache: Annotated[
        str | None,
        Flag(
            is_size=True,
            metavar="SIZE",
            help="Host tier: memory for evicted KV pages, such as 4GiB; 0 turns it off.",
            default="a quarter of the available memory",
            note="The default is at most 8 GiB.",
        ),
    ] = None
    disk_cache: Annotated[
        str | None,
        Flag(
            is_size=True,
            metavar="SIZE",
            help="Disk tier: disk space for KV pages evicted from the host tier. They survive restarts.",
            default="a tenth of the free space",
            note="The default is at most 8 GiB. The files are in `$CORTEX_HOME/kv`. Without a host tier there is no "
            "disk tier.",
        ),
    ] = None
    backend_top_k: Annotated[
        int | None,
        Flag(
            min=0,
            max=1024,
            help="The GPU finds this many of the most likely tokens. Where possible, the next token is selected only "
            "from these. 0 is off.",
            note="With a value above 0, logits stay on the GPU; see below.",
        ),
    ] = None
    draft: Annotated[
        str | None,
        Flag(
            choices=DRAFTS,
            help="Whether steps verify drafted tokens where that is faster. auto is on, but on a GPU without a draft "
            "model it is off.",
            note="Drafts change no answer; see below.",
        ),
    ] = None
    draft_model: Annotated[
        str | None,
        Flag(
            is_model=True,
            is_shared=False,
            metavar="MODEL",
            help="A small model with the same vocabulary, which drafts tokens. A path or a name, as MODEL.",
            default="none",
            note="It must be on disk.",
        ),
    ] = None
    pooling: Annotated[
        str | None,
        Flag(
            choices=POOLINGS,
            help="How the embeddings of tokens become the embedding of a text; auto is the model file's setting.",
        ),
    ] = None
    kv_events: Annotated[
        str | None,
        Flag(
            is_endpoint=True,
            is_shared=False,
            metavar="ENDPOINT",
            help="Publish for routers which pages the KV cache has, at an endpoint such as tcp://127.0.0.1:5557.",
            default="none",
            note="It needs the extra `events`. The events contain prompts; see below.",
        ),
    ] = None
    kv_events_replay: Annotated[
        str | None,
        Flag(
            is_endpoint=True,
            is_shared=False,
            metavar="ENDPOINT",
            help="Send KV events that a router has missed, at an endpoint such as tcp://127.0.0.1:5558.",
            default="none",
        ),
    ] = None
    kv_events_topic: Annotated[
        str | None,
        Flag(is_shared=False, metavar="TOPIC", help="Topic of the KV events.", default="none"),
    ] = None
    alias: Annotated[
        list[str] | None,
        Flag(
            max_length=MAX_NAME_LENGTH,
            is_shared=False,
            metavar="NAME",
            help="Another name for the model. May be repeated.",
        ),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The flags that are set, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def shareable(self) -> dict[str, Any]:
        """The set flags that can apply to several models."""
        return {
            name: value for name, value in self.given.items() if name in MODEL_ROWS and MODEL_ROWS[name].flag.is_shared
        }

    def model_options(
        self, model: str, model_path: Path, inherited: Mapping[str, object] = MappingProxyType({})
    ) -> ModelOptions:
        """The options of a model. Precedence: these flags, the server's flags, model.yaml, built-in default.

        Raises ModelFilesError if model.yaml is invalid, or if the draft model cannot be used.
        """
        own = own_defaults(model_path)
        given = {name: value for name, value in self.given.items() if name in MODEL_ROWS and name != "alias"}
        if self.draft_model is not None:  # its file, so that two spellings of a model are no difference
            given["draft_model"] = MODEL_ROWS["draft_model"].converted(self.draft_model)
        from_file = {"ctx_len": own.ctx_len or None, "gpu_layers": own.ngl} if own else {}
        chosen: dict[str, Any] = {name: value for name, value in from_file.items() if value is not None}
        chosen |= {name: MODEL_ROWS[name].converted(value) for name, value in {**inherited, **given}.items()}
        engine = EngineConfig(
            model_path=str(model_path),
            disk_folder=str(home() / "kv"),
            tuning_folder=str(home() / "tuned"),
            proven_folder=str(home() / "proven"),
            **chosen,
        )
        return ModelOptions(model, model_path, engine, tuple(self.alias or ()), own, given, inherited)

    def start_request(self, model: str, path: Path) -> dict[str, Any]:
        """The request body that makes a running server start this model."""
        flags = {name: getattr(self, name) for name in MODEL_ROWS}
        if self.draft_model:
            flags["draft_model"] = portable(self.draft_model)
        return {"model": model, "path": str(path)} | flags | {"alias": self.alias or []}


@dataclass(frozen=True)
class ServerFlags(ModelFlags):
    """The flags of a server and its first model, which `cortex run` and `cortex serve` take."""

    host: Annotated[str | None, Flag(help="Address to listen on.", note="The default also listens on `::1`.")] = None
    port: Annotated[int | None, Flag(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = None
    unix_socket: Annotated[
        str | None,
        Flag(
            is_path=True,
            metavar="PATH",
            help="Unix socket to listen on, instead of host and port.",
            default="none",
            note="The server's user and group can connect.",
        ),
    ] = None
    tls_cert: Annotated[
        str | None,
        Flag(
            is_path=True,
            metavar="PATH",
            help="Certificate of the server, in PEM form. The server then speaks HTTPS only.",
            default="none",
            note="The file may contain the whole chain.",
        ),
    ] = None
    tls_key: Annotated[
        str | None,
        Flag(
            is_path=True,
            metavar="PATH",
            help="Private key of the certificate, in PEM form, without a passphrase.",
            default="none",
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        Flag(
            metavar="ORIGIN",
            becomes="cors_origins",
            help="Web origin whose pages may call the API; '*' is any. May be repeated.",
        ),
    ] = None
    max_connections: Annotated[
        int | None,
        Flag(
            min=0,
            help="Maximum number of connections. Further ones get a 429. 0 is no limit.",
            note="It is lower if the system's limit for open files is.",
        ),
    ] = None
    max_connections_per_address: Annotated[
        int | None,
        Flag(
            min=0,
            help="Maximum number of connections from one address. Further ones get a 429. 0 is no limit.",
            note="All users behind a reverse proxy have its address.",
        ),
    ] = None
    max_waiting: Annotated[
        int | None,
        Flag(
            min=0,
            help="Maximum number of waiting requests to one model. Further requests are refused.",
            note="They get a 429.",
        ),
    ] = None
    max_concurrent: Annotated[
        int | None,
        Flag(min=0, help="Maximum number of sequences of all clients together that run and wait. 0 is no limit."),
    ] = None
    requests_per_minute: Annotated[
        int | None, Flag(min=0, help="Requests of all clients together in a minute. 0 is no limit.")
    ] = None
    tokens_per_minute: Annotated[
        int | None,
        Flag(min=0, help="Tokens of prompts and answers of all clients together in a minute. 0 is no limit."),
    ] = None
    tenant_max_waiting: Annotated[
        int | None, Flag(min=0, help="Maximum number of sequences of one tenant without any output yet. 0 is no limit.")
    ] = None
    tenant_max_concurrent: Annotated[
        int | None, Flag(min=0, help="Maximum number of sequences of one tenant that run and wait. 0 is no limit.")
    ] = None
    tenant_requests_per_minute: Annotated[
        int | None, Flag(min=0, help="Requests of one tenant in a minute. 0 is no limit.")
    ] = None
    tenant_tokens_per_minute: Annotated[
        int | None, Flag(min=0, help="Tokens of prompts and answers of one tenant in a minute. 0 is no limit.")
    ] = None
    files_size: Annotated[
        str | None,
        Flag(
            is_size=True,
            metavar="SIZE",
            help="Disk space for the files of all clients together (`/v1/files`, and results of batches).",
            default="32GiB",
            note="The files are in `$CORTEX_HOME/files`. An upload that would exceed it gets a 507.",
        ),
    ] = None
    tenant_files_size: Annotated[
        str | None,
        Flag(is_size=True, metavar="SIZE", help="Disk space for the files of one tenant.", default="8GiB"),
    ] = None
    request_timeout: Annotated[
        float | None,
        Flag(
            min=0,
            metavar="SECONDS",
            help="End a request that takes longer than this. 0 is never.",
            note="A request can set another time with the header `X-Request-Timeout`.",
        ),
    ] = None
    cache_scope: Annotated[
        str | None,
        Flag(
            choices=get_args(CacheScope),
            help="Who shares prefixes in the KV cache: all clients of the server, or the requests of one tenant.",
            default="tenant if keys are demanded, else server",
            note="With `tenant`, nobody can find out from times or from `cached_tokens` what others asked.",
        ),
    ] = None
    auth: Annotated[
        bool | None,
        Flag(
            help="Demand API keys.",
            default="on, unless --host is a loopback address",
            note="`cortex keys` makes keys.",
        ),
    ] = None
    keys_file: Annotated[
        str | None,
        Flag(
            metavar="PATH",
            help="TOML file with further keys, for machines that share keys. Read again when it changes.",
            default="none",
        ),
    ] = None
    metrics_public: Annotated[
        bool | None, Flag(help="Answer GET /metrics without a key, even if other requests need one.")
    ] = None
    grace: Annotated[
        float | None,
        Flag(
            min=0,
            max=86400,
            metavar="SECONDS",
            becomes="grace_seconds",
            help="How long running requests may continue after a stop.",
        ),
    ] = None
    drain_delay: Annotated[
        float | None,
        Flag(
            min=0,
            max=86400,
            metavar="SECONDS",
            help="How long a server that is stopped still answers, at least: 503, so that load balancers notice it.",
        ),
    ] = None
    idle_limit: Annotated[
        float | None,
        Flag(
            min=0,
            metavar="SECONDS",
            help="Unload a model after this time without requests. The next request loads it again. 0 is never.",
        ),
    ] = None
    log_format: Annotated[
        str | None, Flag(choices=LOG_FORMATS, help="Format of the log; json is one JSON object per line.")
    ] = None
    log_requests: Annotated[
        bool | None,
        Flag(help="Write a log line for each request that has ended.", note="It has no prompts and no answers."),
    ] = None
    on_demand: Annotated[
        bool | None,
        Flag(
            help="Load a model from disk when a request names it.",
            note="The request waits. Idle models are unloaded to make room.",
        ),
    ] = None

    def arguments(self) -> list[str]:
        """The set flags as command-line arguments."""
        return [argument for name, value in self.given.items() for argument in ROWS[name].arguments(value)]

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of ServerSettings that are set."""
        names = {item.name for item in fields(ServerSettings)}
        rows = [row for row in SERVER_ROWS.values() if row.name in self.given and row.becomes in names]
        return {row.becomes: row.converted(getattr(self, row.name)) for row in rows}

    def options(self, model: str, model_path: Path, log_file: str | None = None) -> ServerOptions:
        """The options of a server for `model`, whose first file is `model_path`.

        Raises ModelFilesError if model.yaml is invalid, or if the draft model cannot be used.
        """
        on_demand: dict[str, Any] = {"on_demand": self._on_disk} if self.on_demand else {}
        return ServerOptions(
            self.model_options(model, model_path),
            model_flags=self.shareable,
            log_file=log_file,
            **on_demand,
            **self.settings,
        )

    def _on_disk(self, name: str) -> ModelOptions | None:
        """The options of the model on disk with this name; None if there is none. The name is never read as a path.

        Raises ModelFilesError if the model cannot be used or the name is ambiguous.
        """
        try:
            path = resolve_name(name)
        except AmbiguousNameError:
            raise
        except ModelNotFoundError:
            return None
        return ModelFlags().model_options(name, path, self.shareable)


def _rows(flags: type[ModelFlags]) -> dict[str, Row]:
    hints = get_type_hints(flags, include_extras=True)
    return {item.name: _row(item.name, hints[item.name]) for item in fields(flags)}


def _row(name: str, hint: Any) -> Row:
    """The row of a field that is annotated with `Annotated[<type> | None, Flag(...)]`."""
    optional, flag = get_args(hint)
    chosen = get_args(optional)[0]
    kind = get_origin(chosen) or chosen
    is_model = any(item.name == name for item in fields(ModelFlags))
    return Row(name, kind, flag, "model" if is_model else "server", _default(flag.becomes or name, kind, flag))


def _default(becomes: str, kind: type, flag: Flag) -> Any:
    if flag.default:
        return None
    if kind in (list, bool):
        return kind()
    defaults = {item.name: item.default for each in (EngineConfig, ServerSettings) for item in fields(each)}
    default = defaults[becomes]
    assert default is not MISSING, "every flag has a default"
    return default


ROWS: Final[Mapping[str, Row]] = _rows(ServerFlags)
"""Every flag, by name and in the order of `--help`."""
MODEL_ROWS: Final = {name: row for name, row in ROWS.items() if row.scope == "model"}
SERVER_ROWS: Final = {name: row for name, row in ROWS.items() if row.scope == "server"}
