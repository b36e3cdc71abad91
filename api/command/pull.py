"""Finds or downloads a model's file, for `cortex pull`, `cortex run` and `cortex serve`."""

import sys
from functools import partial
from pathlib import Path

import typer

from api.command.terminal import download_bar
from api.models.files import ModelFileError, NotOnDiskError, is_name, resolve, resolve_name


def download(model: str) -> Path:
    """Download a model from a hub with a progress bar, and return its first file. Raises ModelFilesError."""
    from api.models.hub import pull  # imported late: few commands need it

    def busy() -> None:
        if sys.stderr.isatty():
            typer.echo(f"Another process is pulling {model}; waiting for it.", err=True)

    try:
        return pull(model, partial(download_bar, model), busy)
    except KeyboardInterrupt:
        typer.echo(f"cortex: interrupted; 'cortex pull {model}' resumes the download", err=True)
        raise


def obtain(model: str) -> Path:
    """The first file of a model, downloaded only if it is not on disk. Raises ModelFilesError."""
    try:
        return resolve(model)
    except NotOnDiskError:
        return download(model)


def obtain_name(model: str) -> tuple[Path, bool]:
    """The first file of a named model, and whether it was downloaded. A damaged model is downloaded again.

    Raises ModelFilesError.
    """
    if is_name(model):
        try:
            return resolve_name(model), False
        except (NotOnDiskError, ModelFileError):
            pass
    return download(model), True
