"""Having a model's file on disk: what `cortex pull` does, and `cortex run` and `cortex serve` do first."""

import sys
from functools import partial
from pathlib import Path

import typer

from api.command.terminal import download_bar
from api.models.files import ModelFileError, NotOnDiskError, is_name, resolve, resolve_name


def download(model: str) -> Path:
    """The file of a model that a hub has, with a progress bar while it comes. Raises ModelFilesError."""
    from api.models.hub import pull  # only now: few commands need it

    def busy() -> None:
        if sys.stderr.isatty():
            typer.echo(f"Another process pulls {model}; waiting for it.", err=True)

    try:
        return pull(model, partial(download_bar, model), busy)
    except KeyboardInterrupt:
        typer.echo(f"cortex: interrupted; 'cortex pull {model}' goes on from here", err=True)
        raise


def obtain(model: str) -> Path:
    """The file of any model; what is on disk needs no network. Raises ModelFilesError."""
    try:
        return resolve(model)
    except NotOnDiskError:
        return download(model)


def obtain_name(model: str) -> tuple[Path, bool]:
    """The same for a name, and whether it was downloaded; a damaged file is downloaded anew."""
    if is_name(model):
        try:
            return resolve_name(model), False
        except (NotOnDiskError, ModelFileError):
            pass
    return download(model), True
