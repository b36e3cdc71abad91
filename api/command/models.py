"""`cortex models`: what lies on disk, and taking some in or away."""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from api.command.completion import models_on_disk
from api.command.terminal import bytes_text, print_kept_models
from api.flags import own_defaults
from api.models import library
from api.models.files import ModelFilesError, NotOnDiskError, TakenError
from api.models.library import KeptModel
from api.record import ask_health, read_record

app = typer.Typer()

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="As 'cortex models list' shows it.", autocompletion=models_on_disk),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """Show, remove and import the models on disk."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show the models on disk."""
    models = [_row(model) for model in library.kept_models()]
    if as_json:
        typer.echo(json.dumps(models, indent=2))
    elif models:
        print_kept_models(models)
    else:
        typer.echo("No models are on disk; 'cortex pull NAME' downloads one.")


@app.command("get")
def get_model(name: Name, as_json: AsJson = False) -> None:
    """Show a model on disk, and what its model.yaml says."""
    model = library.find(name)
    defaults = own_defaults(model.path)
    said = defaults.model_dump(exclude_none=True) if defaults else None
    if as_json:
        typer.echo(json.dumps(_row(model) | {"model_yaml": said}, indent=2))
        return
    typer.echo(f"{model.name}: {bytes_text(model.size_bytes)}")
    for file in model.files:
        typer.echo(f"  {file}")
    if model.settings:
        typer.echo(f"  {model.settings}")
        for line in model.settings.read_text().splitlines():
            typer.echo(f"    {line}")


@app.command("remove")
def remove_model(name: Name) -> None:
    """Delete a model's files, or what came of it before its pull was broken off."""
    try:
        model = library.find_damaged(name)
    except (NotOnDiskError, TakenError):
        if not library.remove_unfinished(name):
            raise
        typer.echo(f"What came of {name} so far is removed.")
        return
    _refuse_if_served(model)
    library.remove(model)
    typer.echo(f"{model.name} is removed: {bytes_text(model.size_bytes)} are free again.")


@app.command("import")
def import_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as mistral:7b-mine.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="A .gguf file, the first one of a model in parts.")],
) -> None:
    """Give a .gguf file elsewhere a name, without taking room twice where that can be."""
    model = library.import_file(name, Path(path).expanduser())
    typer.echo(f"{model.name} is on disk now: {bytes_text(model.size_bytes)} at {model.path}")


def _row(model: KeptModel) -> dict[str, Any]:
    return asdict(model) | {
        "files": [str(file) for file in model.files],
        "modified": datetime.fromtimestamp(int(model.modified)).astimezone().isoformat(),
    }


def _refuse_if_served(model: KeptModel) -> None:
    """Raises ModelFilesError."""
    record = read_record()
    if record is None:
        return
    health = ask_health(record)
    if health is None:
        raise ModelFilesError(f"the server (pid {record.pid}) does not say what it serves; 'cortex stop' ends it")
    for served in health.models:
        if served.path and Path(served.path).resolve() in [file.resolve() for file in model.files]:
            raise ModelFilesError(f"{served.model} is being served; 'cortex stop {served.model}' ends that")
