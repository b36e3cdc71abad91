"""The `cortex` command: its subcommands and their output in a terminal."""
