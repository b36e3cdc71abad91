"""`python -m api` is the `cortex` command."""

from api.command.cli import main

if __name__ == "__main__":
    main()
