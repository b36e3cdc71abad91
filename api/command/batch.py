"""`cortex batch`: runs the requests of a file on the running server whenever it has room, and shows batches."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.command.launch import CommandError
from api.command.terminal import client_of, line_bar, print_batches
from api.record import ServerRecord, read_record

if TYPE_CHECKING:
    import httpx

app = typer.Typer()

POLL_SECONDS = 0.5
ENDED = ("failed", "completed", "expired", "cancelled")
DEFAULT_ENDPOINT = "/v1/chat/completions"

BatchId = Annotated[str, typer.Argument(metavar="ID", help="As shown by 'cortex batch list'.")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Where the answers are written. By default beside FILE, as FILE.output.jsonl."),
]
Errors = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Where errors are written. By default beside the answers, as ….errors.jsonl."),
]


@app.callback()
def batch() -> None:
    """Run the requests of a file whenever the server has room."""


@app.command()
def run(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A JSONL file of requests, as OpenAI's batches have it.", dir_okay=False),
    ],
    endpoint: Annotated[
        str | None, typer.Option(help="The endpoint of all requests. By default the URL in the first line.")
    ] = None,
    output: Output = None,
    errors: Errors = None,
) -> None:
    """Run the requests of FILE and write their answers. Ctrl-C leaves the batch running."""
    output = output or file.with_suffix(".output.jsonl")
    errors = errors or _beside(output)
    _require_new(output, errors)
    path = endpoint or _first_url(file)
    record = _server()
    with client_of(record) as client:
        with file.open("rb") as data:
            uploaded = _ask(client, "POST", "/files", data={"purpose": "batch"}, files={"file": (file.name, data)})
        body = {"input_file_id": uploaded["id"], "endpoint": path, "completion_window": "24h"}
        made = _ask(client, "POST", "/batches", json=body)
        _finish(client, made["id"], output, errors)


@app.command()
def wait(
    batch_id: BatchId,
    output: Annotated[Path, typer.Option(metavar="PATH", help="Where the answers are written.")],
    errors: Errors = None,
) -> None:
    """Wait for the end of a batch, and write its answers. Ctrl-C leaves the batch running."""
    errors = errors or _beside(output)
    _require_new(output, errors)
    with client_of(_server()) as client:
        _finish(client, batch_id, output, errors)


@app.command("list")
def list_batches(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False) -> None:
    """List the latest 100 batches, the newest first."""
    with client_of(_server()) as client:
        batches = _ask(client, "GET", "/batches", params={"limit": 100})["data"]
    if as_json:
        typer.echo(json.dumps(batches, indent=2))
    elif batches:
        print_batches(batches)
    else:
        typer.echo("There are no batches.")


@app.command()
def cancel(batch_id: BatchId) -> None:
    """End a batch early. 'cortex batch wait' writes the answers that it has."""
    with client_of(_server()) as client:
        _ask(client, "POST", f"/batches/{batch_id}/cancel")
    typer.echo(f"{batch_id} is being cancelled.")


def _finish(client: "httpx.Client", batch_id: str, output: Path, errors: Path) -> None:
    """Wait for the end of a batch and write its files. Exits with 1 if a line has no answer, or an error."""
    try:
        ended = _wait(client, batch_id)
    except KeyboardInterrupt:
        resume = f"cortex batch wait {batch_id} --output {output}"
        typer.echo(f"cortex: interrupted; the batch goes on. '{resume}' waits for it", err=True)
        raise
    if ended["status"] == "failed":
        _print_errors(ended)
        raise typer.Exit(1)
    for file_id, path in ((ended["output_file_id"], output), (ended["error_file_id"], errors)):
        if file_id is not None:
            _download(client, file_id, path)
    counts = ended["request_counts"]
    typer.echo(f"{ended['status']}: {counts['completed']} of {counts['total']} answers are in {output}", err=True)
    if counts["failed"]:
        typer.echo(f"cortex: {counts['failed']} requests failed; their errors are in {errors}", err=True)
    if counts["failed"] or ended["status"] != "completed":
        raise typer.Exit(1)


def _wait(client: "httpx.Client", batch_id: str) -> dict[str, Any]:
    with line_bar(batch_id) as show:
        while True:
            batch = _ask(client, "GET", f"/batches/{batch_id}")
            counts = batch["request_counts"]
            show(batch["status"], counts["completed"] + counts["failed"], counts["total"])
            if batch["status"] in ENDED:
                return batch
            time.sleep(POLL_SECONDS)


def _print_errors(batch: dict[str, Any]) -> None:
    found = (batch["errors"] or {"data": []})["data"]
    typer.echo("cortex: the batch failed, because its file cannot be used", err=True)
    for error in found:
        place = f"line {error['line']}: " if error["line"] is not None else ""
        typer.echo(f"  {place}{error['message']}", err=True)


def _download(client: "httpx.Client", file_id: str, path: Path) -> None:
    with client.stream("GET", f"/files/{file_id}/content") as answer, path.open("xb") as file:
        if answer.status_code != 200:
            answer.read()
            raise CommandError(_message(answer))
        for piece in answer.iter_bytes():
            file.write(piece)


def _ask(client: "httpx.Client", method: str, path: str, **request: Any) -> dict[str, Any]:
    """The JSON answer. Raises CommandError if the server refuses or does not answer."""
    import httpx

    try:
        answer = client.request(method, path, **request)
    except httpx.TransportError as error:
        reason = f"the server has ended or does not answer ({error}); batches go on when it runs again"
        raise CommandError(reason) from error
    if answer.status_code != 200:
        raise CommandError(_message(answer))
    body: dict[str, Any] = answer.json()
    return body


def _message(answer: "httpx.Response") -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers with status {answer.status_code}"


def _server() -> ServerRecord:
    record = read_record()
    if record is None:
        raise CommandError("no server runs; start one with 'cortex run -d MODEL'")
    return record


def _first_url(file: Path) -> str:
    """The URL of the first request. If there is none, the server says what is wrong with the file."""
    with file.open("rb") as lines:
        try:
            return str(json.loads(lines.readline())["url"])
        except (ValueError, KeyError, TypeError):
            return DEFAULT_ENDPOINT


def _beside(output: Path) -> Path:
    name = output.name.removesuffix(".jsonl").removesuffix(".output")
    return output.with_name(f"{name}.errors.jsonl")


def _require_new(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise CommandError(f"{path} exists; choose another file with --output or --errors")
