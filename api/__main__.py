"""`python -m api` is the `cortex` command."""

from api.cli import main

if __name__ == "__main__":
    main()
