"""What a client sees: HTTP, chat templates, tokens to text, the cortex command. The only package that knows trio."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    try:
        return version("cortex-server")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"
