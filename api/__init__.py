"""The API process: HTTP, chat templates, tokens to text, the cortex command. It runs on trio; the engine does not."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    try:
        return version("cortex-server")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"
