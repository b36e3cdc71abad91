"""`cortex models`: lists, shows, removes and imports models on disk."""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.command.completion import models_on_disk
from api.command.terminal import bytes_text, print_kept_models
from api.flags import own_defaults
from api.models import gguf, library
from api.models.files import ModelFilesError, NotOnDiskError, TakenError
from api.models.library import KeptModel
from api.record import ask_health, read_record

if TYPE_CHECKING:
    from api.models.defaults import ModelDefaults

app = typer.Typer()

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A name as shown by 'cortex models list'.", autocompletion=models_on_disk),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List, show, remove or import models on disk."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models on disk."""
    models = [_row(model) for model in library.kept_models()]
    if as_json:
        typer.echo(json.dumps(models, indent=2))
    elif models:
        print_kept_models(models)
    else:
        typer.echo("No models are on disk; 'cortex pull NAME' downloads one.")


@app.command("get")
def get_model(name: Name, as_json: AsJson = False) -> None:
    """Show a model on disk and its model.yaml."""
    model = library.find(name)
    defaults = own_defaults(model.path)
    values = defaults.model_dump(exclude_none=True) if defaults else None
    template, answers = _template(model, defaults)
    if as_json:
        shown = {"model_yaml": values, "chat_template": template, "answer_syntax": answers}
        typer.echo(json.dumps(_row(model) | shown, indent=2))
        return
    typer.echo(f"{model.name}: {bytes_text(model.size_bytes)}")
    for file in model.files:
        typer.echo(f"  {file}")
    if model.settings:
        typer.echo(f"  {model.settings}")
        for line in model.settings.read_text().splitlines():
            typer.echo(f"    {line}")
    typer.echo(f"  chat template: {template}")
    if answers:
        typer.echo(f"  {answers}")


@app.command("remove")
def remove_model(name: Name) -> None:
    """Delete a model's files, or the files of its unfinished pull or import."""
    try:
        model = library.find_damaged(name)
    except (NotOnDiskError, TakenError):
        if not library.remove_unfinished(name):
            raise
        typer.echo(f"The unfinished files of {name} are removed.")
        return
    _refuse_if_served(model)
    library.remove(model)
    typer.echo(f"{model.name} is removed: {bytes_text(model.size_bytes)} freed.")


@app.command("import")
def import_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new name such as mistral:7b-mine.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="A .gguf file; the first part of a split model.")],
) -> None:
    """Import a .gguf file under a new name. Makes a hard link, or a copy if a link is not possible."""
    model = library.import_file(name, Path(path).expanduser())
    typer.echo(f"{model.name} is now on disk: {bytes_text(model.size_bytes)} at {model.path}")


def _row(model: KeptModel) -> dict[str, Any]:
    return asdict(model) | {
        "files": [str(file) for file in model.files],
        "modified": datetime.fromtimestamp(int(model.modified)).astimezone().isoformat(),
    }


def _template(model: KeptModel, defaults: "ModelDefaults | None") -> tuple[str, str | None]:
    """Where the model's chat template comes from, and why it cannot be used, if so; what it shows about answers."""
    from api.text.dialects import describe, dialect_of  # imported late: this takes 0.3 s
    from api.text.template import NO_VOCABULARY, ChatTemplate, template_origin
    from api.text.tokenizer import ModelError

    own = defaults.template if defaults else None
    try:
        in_file = gguf.chat_template(model.path)
    except (gguf.GgufError, OSError) as error:  # it was complete a moment ago
        raise ModelFilesError(f"{model.path} {error}") from error
    origin = template_origin(own, in_file)
    try:
        template = ChatTemplate(own or in_file, NO_VOCABULARY)
    except ModelError as error:
        return f"{origin}; {error}", None
    return origin, describe(dialect_of(template).learned)


def _refuse_if_served(model: KeptModel) -> None:
    """Raises ModelFilesError if the running server has the model or does not answer."""
    record = read_record()
    if record is None:
        return
    health = ask_health(record)
    if health is None:
        problem = f"the server (pid {record.pid}) does not answer and may serve the model"
        raise ModelFilesError(f"{problem}; stop it with 'cortex stop'")
    for served in health.models:
        if served.path and Path(served.path).resolve() in [file.resolve() for file in model.files]:
            raise ModelFilesError(f"{served.model} is being served; stop it with 'cortex stop {served.model}'")
