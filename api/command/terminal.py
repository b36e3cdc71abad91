"""Terminal output: a chat with a served model, tables, a spinner and a download bar."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from api.record import ServerRecord
from api.tenants.secret import credentials
from api.tls import client_context

if TYPE_CHECKING:
    import httpx
    from rich.console import JustifyMethod

    from api.tenants.usage import Used

PROMPT = "> "
_FAREWELL = "exit()"
# Removes control characters except tab and newline, so that an answer cannot control the terminal.
_PRINTABLE = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


class ChatError(Exception):
    """An answer that failed or broke off. The message is one line for the user."""


class Conversation:
    """A chat with one model: its history, and the next answer as a stream of text."""

    def __init__(self, client: "httpx.Client", model: str) -> None:
        self._client = client
        self._model = model
        self.messages: list[dict[str, str]] = []

    def answer(self, text: str) -> Generator[str]:
        """Yield the answer to `text` piece by piece. The history keeps the pieces of an incomplete answer.

        Raises ChatError if the server does not answer, returns an error, or breaks the stream off.
        """
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            for piece in self._stream():
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            else:
                # Many templates require alternating roles, so a question without an answer is dropped.
                self.messages.pop()

    def _stream(self) -> Iterator[str]:
        import httpx

        body = {"model": self._model, "messages": self.messages, "stream": True}
        try:
            with self._client.stream("POST", "chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise ChatError(_error_text(response.read(), f"the server answered {response.status_code}"))
                for data in event_data(response.iter_bytes()):
                    yield _delta(data)
        except httpx.HTTPError as error:
            raise ChatError(f"the server does not answer: {error}") from error


def event_data(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the data of each server-sent event except the closing `[DONE]`.

    Lines end only at newlines. (httpx's line iterator also splits at Unicode separators, which JSON may contain
    unescaped.)
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield data


def _delta(data: bytes) -> str:
    try:
        event = json.loads(data)
        if "error" in event:
            raise ChatError(_error_text(data, "the server reports an error"))
        choices = event["choices"]
        return (choices[0]["delta"].get("content") or "") if choices else ""
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ChatError(f"the server sent data that is not a chat event: {data[:80]!r}") from error


def _error_text(body: bytes, otherwise: str) -> str:
    try:
        return " ".join(str(json.loads(body)["error"]["message"]).split())
    except (ValueError, TypeError, KeyError):
        return otherwise


def client_of(record: ServerRecord) -> "httpx.Client":
    """A client of a server on this machine. Requests may take any time."""
    import httpx

    trusted = client_context(record.certificate) if record.certificate else False  # False: plain HTTP
    # The environment's proxies are ignored, because the server is on this machine.
    transport = httpx.HTTPTransport(uds=record.unix_socket, verify=trusted, trust_env=False)
    timeout = httpx.Timeout(10.0, read=None)  # A request may wait long in the queue; Ctrl-C ends the wait.
    return httpx.Client(base_url=record.connect_url, headers=credentials(), timeout=timeout, transport=transport)


def chat(client: "httpx.Client", model: str) -> bool:
    """Chat on stdin and stdout until `exit()` or the end of input. Returns False if an answer failed.

    At a terminal, Ctrl-C stops the current answer. At an empty prompt it ends the chat.
    """
    complete = True
    conversation = Conversation(client, model)
    interactive = sys.stdin.isatty()
    if interactive:
        typer.echo(f"Chat with {model}; {_FAREWELL} or Ctrl-D ends it.", err=True)
    for line in _typed_lines() if interactive else _piped_lines():
        if line == _FAREWELL:
            break
        if line:
            complete &= _print_answer(conversation, line, interruptible=interactive)
    return complete


def _typed_lines() -> Iterator[str]:
    import readline  # gives input() its line editing

    while True:
        try:
            yield input(PROMPT).strip()
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo()
            if not readline.get_line_buffer():
                return


def _piped_lines() -> Iterator[str]:
    for line in typer.get_binary_stream("stdin"):
        yield line.decode(errors="replace").strip()


def _print_answer(conversation: Conversation, text: str, *, interruptible: bool) -> bool:
    pieces = conversation.answer(text)
    try:
        with contextlib.closing(pieces), _noted_interrupts() as interrupts:
            for piece in pieces:
                typer.echo(piece.translate(_PRINTABLE), nl=False)
                if interrupts:
                    break
    except KeyboardInterrupt:
        if not interruptible:
            raise
        typer.echo()
    except ChatError as error:
        typer.echo()
        typer.echo(f"cortex: {error}", err=True)
        return False
    else:
        typer.echo()
    return True


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Record interrupts and raise them: Python drops an exception that is raised inside a finalizer."""
    noted: list[int] = []

    def note(signal_number: int, _frame: object) -> None:
        noted.append(signal_number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show a spinner and the elapsed time on stderr, if it is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns: tuple[Any, ...] = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(text, total=None)
        yield


@contextlib.contextmanager
def download_bar(text: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, if it is a terminal. `done` of `total` bytes are already on disk.

    Yields a function to call with the size of each received piece in bytes.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total, completed=done)
        yield lambda num_bytes: progress.advance(task, num_bytes)


@contextlib.contextmanager
def line_bar(text: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show the progress of a batch on stderr, if it is a terminal.

    Yields a function to call with its status, and with its numbers of done and of all lines; 0 while it has none.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=None)

        def show(status: str, done: int, total: int) -> None:
            progress.update(task, description=f"{text} {status}", completed=done, total=total or None)

        yield show


def print_tuning(model: str, outcome: dict[str, Any]) -> None:
    """Print the measurements and the selected settings of `cortex tune`. `outcome` is its JSON output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    measured, tuning = outcome["measured"], outcome["tuning"]
    columns = (
        ("THREADS", "threads", "SECONDS"),
        ("TOKENS PER STEP", "batch_tokens", f"SECONDS FOR {measured['prompt_tokens']} TOKENS"),
    )
    for heading, name, unit in columns:
        if not measured[name]:
            continue
        table = Table(box=None, pad_edge=False)
        table.add_column(heading, justify="right")
        table.add_column(unit, justify="right")
        for setting, seconds in measured[name].items():
            table.add_row(setting, f"{seconds:.2f}", style="bold" if int(setting) == tuning[name] else "")
        console.print(table)
    threads = "1 thread" if tuning["threads"] == 1 else f"{tuning['threads']} threads"
    sys.stdout.write(f"{model} will be served with {threads} and steps of up to {tuning['batch_tokens']} tokens.\n")


def print_models(models: list[dict[str, Any]]) -> None:
    """Print the table of `cortex ps`. `models` is its JSON output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A pipe has no width to fit into.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    table = Table(box=None, pad_edge=False)
    for column in ("MODEL", "STATE", "PID", "ENGINE", "KV MEMORY", "UPTIME", "ADDRESS"):
        table.add_column(column, overflow="fold")
    for model in models:
        cells = (
            model["model"],
            model["state"],
            str(model["pid"]),
            str(model["engine_pid"] or "-"),
            _kv_text(model["kv"]),
            _duration_text(model["uptime_seconds"]),
            model["url"],
        )
        table.add_row(*map(Text, cells))
    console.print(table)


def print_kept_models(models: list[dict[str, Any]]) -> None:
    """Print the table of `cortex models list`. `models` is its JSON output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1000)
    table = Table(box=None, pad_edge=False)
    for column in ("MODEL", "SIZE", "MODIFIED", "FILES"):
        table.add_column(column, overflow="fold")
    for model in models:
        first, *more = model["files"]
        files = f"{first} and {len(more)} more" if more else first
        table.add_row(*map(Text, (model["name"], bytes_text(model["size_bytes"]), model["modified"], files)))
    console.print(table)


def print_tenants(tenants: list[dict[str, Any]]) -> None:
    """Print the table of `cortex keys list`. `tenants` is its JSON output."""
    rows = []
    for each in tenants:
        limits = [
            f"{each[name]} {text}"
            for name, text in (
                ("max_waiting", "waiting"),
                ("max_concurrent", "concurrent"),
                ("requests_per_minute", "requests/min"),
                ("tokens_per_minute", "tokens/min"),
            )
            if each[name] is not None
        ]
        rows.append(
            (
                each["name"],
                each["state"] + (", admin" if each["admin"] else ""),
                ", ".join(f"...{key['ending']}" for key in each["keys"]) or "-",
                f"{each['weight']:g}",
                each["priority"],
                ", ".join(limits) or "-",
                ", ".join(each["models"]) or "all",
                each["expires"] or "never",
            )
        )
    _print_table(("NAME", "STATE", "KEY", "WEIGHT", "PRIORITY", "LIMITS", "MODELS", "EXPIRES"), rows)


def print_batches(batches: list[dict[str, Any]]) -> None:
    """Print `cortex batch list`. `batches`: as the API has them."""
    rows = [
        (
            each["id"],
            each["status"],
            each["endpoint"],
            str(each["request_counts"]["completed"]),
            str(each["request_counts"]["failed"]),
            str(each["request_counts"]["total"]),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(each["created_at"])),
        )
        for each in batches
    ]
    _print_table(("ID", "STATUS", "ENDPOINT", "COMPLETED", "FAILED", "LINES", "CREATED"), rows)


def print_usage(by: str, rows: list[tuple[str, "Used"]]) -> None:
    """Print the table of `cortex usage`."""
    heads = (by.upper(), "REQUESTS", "PROMPT TOKENS", "CACHED", "ANSWER TOKENS")
    numbers = [(used.requests, used.prompt_tokens, used.cached_tokens, used.answer_tokens) for _, used in rows]
    cells = [(name, *(f"{each:,}" for each in row)) for (name, _), row in zip(rows, numbers, strict=True)]
    _print_table(heads, cells, justify="right")


def _print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], justify: "JustifyMethod" = "left") -> None:
    """Print a table whose first column is always on the left."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1000)
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, overflow="fold", justify=justify if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _kv_text(kv: dict[str, int] | None) -> str:
    if kv is None:
        return "-"
    used = kv["tokens"] - kv["free_tokens"]
    limit = kv.get("max_tokens", 0)  # missing in a server of an older version
    most = f", at most {limit:,}" if limit > kv["tokens"] else ""
    return f"{bytes_text(kv['bytes'])}, {used:,} of {kv['tokens']:,} tokens{most}"


def bytes_text(num_bytes: int) -> str:
    """The number in MiB or GiB."""
    mebibytes = num_bytes / 2**20
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.1f} MiB"


def _duration_text(seconds: float) -> str:
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{int(seconds)} s"
