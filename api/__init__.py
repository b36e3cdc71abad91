"""The API process: HTTP, chat templates, tokens to text, the cortex command. It runs on trio; the engine does not."""


def package_version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # imported late: it takes 50 ms, and few need it

    try:
        return version("cortex-server")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"
