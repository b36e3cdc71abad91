"""The table of flags: one row for each, a field of ModelFlags or ServerFlags.

From it come the options of the command line, the variables of the environment, the keys of cortex.toml, the body of a
start request, the arguments of a server in the background, and the table in the README. A flag about a model is a row
here and a field of EngineConfig; one about a server is a row here and a field of ServerSettings.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

from api.flags.options import ModelOptions, ServerOptions, ServerSettings, own_defaults
from api.flags.row import MAX_NAME_LENGTH, Flag, Row
from api.home import home
from api.models.files import AmbiguousNameError, ModelNotFoundError, resolve_name
from scheduler.config import FLASH_ATTN, KV_LAYOUTS, KV_TYPES, POOLINGS, EngineConfig


@dataclass(frozen=True)
class ModelFlags:
    """The flags that are about one model. None is for a flag that nobody set."""

    ctx_len: Annotated[
        int | None,
        Flag(
            min=64,
            help="Tokens of one request, prompt and answer together.",
            default="8192, or what the model allows",
        ),
    ] = None
    max_seqs: Annotated[
        int | None,
        Flag(
            min=1,
            max=255,
            help="Answers generated at once.",
            default="by the machine",
            note="The default is 32, on a GPU 64. More requests wait their turn.",
        ),
    ] = None
    kv_tokens: Annotated[
        int | None,
        Flag(
            min=64,
            help="Tokens of KV memory for all requests together.",
            default="by the model and the machine",
            note="A pool takes two contexts or more.",
        ),
    ] = None
    batch_tokens: Annotated[
        int | None,
        Flag(min=32, max=8192, help="Token budget of one step.", default="512, or as tuned"),
    ] = None
    itl_target: Annotated[
        float | None,
        Flag(
            min=0.001,
            max=3600.0,
            metavar="SECONDS",
            help="How long streams may wait for their next token while prompts are read.",
            default="by the machine",
            note="The default is the time of a chunk that just reads at full speed. A shorter time makes long prompts "
            "slower.",
        ),
    ] = None
    threads: Annotated[
        int | None,
        Flag(
            min=1,
            max=1024,
            help="CPU threads to compute with.",
            default="by the machine",
            note="The default is the number of physical cores, or as tuned.",
        ),
    ] = None
    gpu_layers: Annotated[
        int | None,
        Flag(
            min=-1,
            help="Layers to put on the GPU; -1 is all.",
            default="all",
            note="It has an effect where llama.cpp is built with a GPU.",
        ),
    ] = None
    kv_type: Annotated[str | None, Flag(choices=KV_TYPES, help="Number format of the KV memory.")] = None
    kv_layout: Annotated[
        str | None,
        Flag(
            choices=KV_LAYOUTS,
            help="One pool of KV memory for all, or a lane for each sequence; auto is lanes where they fit.",
            note="Lanes are the fastest on a CPU. They fit if they take no more than half of the memory.",
        ),
    ] = None
    flash_attn: Annotated[str | None, Flag(choices=FLASH_ATTN, help="Whether to compute with flash attention.")] = None
    host_cache: Annotated[
        str | None,
        Flag(
            is_size=True,
            metavar="SIZE",
            help="Memory for KV that was evicted, such as 4GiB; 0 is none.",
            default="a quarter of what is available",
            note="The default is 8 GiB at most.",
        ),
    ] = None
    disk_cache: Annotated[
        str | None,
        Flag(
            is_size=True,
            metavar="SIZE",
            help="Disk for KV that was evicted from memory, kept over restarts.",
            default="a tenth of what is free",
            note="The default is 8 GiB at most. The files lie under `$CORTEX_HOME/kv`. Without a host cache there is "
            "none.",
        ),
    ] = None
    backend_top_k: Annotated[
        int | None,
        Flag(
            min=0,
            max=1024,
            help="Let the GPU find so many of the best tokens, and draw from these where possible. 0 is off.",
            note="No logits are copied then; see below.",
        ),
    ] = None
    pooling: Annotated[
        str | None,
        Flag(
            choices=POOLINGS,
            help="How vectors of texts are made of their tokens'; auto is as the model's file says.",
        ),
    ] = None
    alias: Annotated[
        list[str] | None,
        Flag(max_length=MAX_NAME_LENGTH, metavar="NAME", help="Another name for the model. May be repeated."),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The flags that somebody set, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def shareable(self) -> dict[str, Any]:
        """Those of them that may hold for several models: all that are about a model, but aliases."""
        return {name: value for name, value in self.given.items() if name in MODEL_ROWS and name != "alias"}

    def model_options(
        self, model: str, model_path: Path, inherited: Mapping[str, object] = MappingProxyType({})
    ) -> ModelOptions:
        """The options of a model: these flags, then those of its server, its model.yaml, and the built-in defaults.

        Raises ModelFilesError for a model.yaml that cannot be used.
        """
        own = own_defaults(model_path)
        given = self.shareable
        from_file = {"ctx_len": own.ctx_len or None, "gpu_layers": own.ngl} if own else {}
        chosen: dict[str, Any] = {name: value for name, value in from_file.items() if value is not None}
        chosen |= {name: MODEL_ROWS[name].converted(value) for name, value in {**inherited, **given}.items()}
        engine = EngineConfig(
            model_path=str(model_path), disk_folder=str(home() / "kv"), tuning_folder=str(home() / "tuned"), **chosen
        )
        return ModelOptions(model, model_path, engine, tuple(self.alias or ()), own, given, inherited)

    def start_request(self, model: str, path: Path) -> dict[str, Any]:
        """The body with which a running server is asked to serve this model, too."""
        flags = {name: getattr(self, name) for name in MODEL_ROWS}
        return {"model": model, "path": str(path)} | flags | {"alias": self.alias or []}


@dataclass(frozen=True)
class ServerFlags(ModelFlags):
    """The flags that `cortex run` and `cortex serve` share."""

    host: Annotated[
        str | None, Flag(help="Address to listen on.", note="The default listens on the address `::1`, too.")
    ] = None
    port: Annotated[int | None, Flag(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = None
    cors_origin: Annotated[
        list[str] | None,
        Flag(
            metavar="ORIGIN",
            becomes="cors_origins",
            help="Web origin whose pages may call the API; '*' is any. May be repeated.",
        ),
    ] = None
    max_waiting: Annotated[
        int | None,
        Flag(min=0, help="Requests that may wait before new ones are refused.", note="These get a 429."),
    ] = None
    grace: Annotated[
        float | None,
        Flag(
            min=0,
            max=86400,
            metavar="SECONDS",
            becomes="grace_seconds",
            help="How long running answers may go on after a stop.",
        ),
    ] = None
    idle_limit: Annotated[
        float | None,
        Flag(
            min=0,
            metavar="SECONDS",
            help="Unload a model that was idle for so long; the next request loads it again. 0 is never.",
        ),
    ] = None
    on_demand: Annotated[
        bool | None,
        Flag(
            help="Load a model that lies on disk when a request asks for it.",
            note="The request waits, and models that nobody uses make room.",
        ),
    ] = None

    def arguments(self) -> list[str]:
        """The flags that somebody set, for another command line."""
        return [argument for name, value in self.given.items() for argument in ROWS[name].arguments(value)]

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of ServerSettings that somebody set."""
        names = {item.name for item in fields(ServerSettings)}
        rows = [row for row in SERVER_ROWS.values() if row.name in self.given and row.becomes in names]
        return {row.becomes: row.converted(getattr(self, row.name)) for row in rows}

    def options(self, model: str, model_path: Path, log_file: str | None = None) -> ServerOptions:
        """The options of a server for `model`, whose file is `model_path`. Raises ModelFilesError."""
        on_demand: dict[str, Any] = {"on_demand": self._on_disk} if self.on_demand else {}
        return ServerOptions(
            self.model_options(model, model_path),
            model_flags=self.shareable,
            log_file=log_file,
            **on_demand,
            **self.settings,
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
    assert default is not MISSING, "a flag may be left out"
    return default


ROWS: Final[Mapping[str, Row]] = _rows(ServerFlags)
"""Every flag, by name and in the order of `--help`."""
MODEL_ROWS: Final = {name: row for name, row in ROWS.items() if row.scope == "model"}
SERVER_ROWS: Final = {name: row for name, row in ROWS.items() if row.scope == "server"}
