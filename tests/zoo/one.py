"""`python -m tests.zoo.one PATH LAYOUT`: checks one model in one layout. Prints the report as one line of JSON."""

import json
import logging
import sys
import tempfile
from pathlib import Path

from tests.zoo.checks import Checks


def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    path, layout = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        report = Checks(path, layout, Path(folder)).run()
    print(json.dumps(report.as_row()))


if __name__ == "__main__":
    main()
