"""Starts a server and lets each client complete a streamed chat: `python tests/clients/run.py PATH-OF-CORTEX`.

Run it with the Python of the environment that has the clients. Exits with 1 if a client failed.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL = "smollm2:135m"
SECONDS = 120.0
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
QUESTION = "Count from one to ten in words."


@contextmanager
def server(cortex: str, home: Path) -> Iterator[str]:
    """Starts a server and stops it at the end. Yields its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (home / "log").open("wb") as log:
        command = [cortex, "serve", "--port", str(port), MODEL]
        process = subprocess.Popen(command, env=os.environ | {"CORTEX_HOME": str(home)}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + SECONDS
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not answer:\n{(home / 'log').read_text()}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(SECONDS)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def commands(url: str) -> dict[str, list[str]]:
    """The command of each client. Python scripts print a line for each piece; other commands print only the text."""
    return {
        "openai (sync and async)": [sys.executable, str(HERE / "openai_chat.py")],
        "LiteLLM": [sys.executable, str(HERE / "litellm_chat.py")],
        "langchain-openai": [sys.executable, str(HERE / "langchain_chat.py")],
        "llm": [str(BIN / "llm"), "-m", "cortex", "-o", "max_tokens", "16", QUESTION],
        "openai command": [
            *(str(BIN / "openai"), "--api-base", f"{url}/", "--api-key", "none"),  # it appends paths to the URL
            *("api", "chat.completions.create", "--stream", "-m", MODEL, "-M", "16", "-g", "user", QUESTION),
        ],
    }


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, server(sys.argv[1], Path(folder)) as url:
        models = f"- model_id: cortex\n  model_name: {MODEL}\n  api_base: {url}\n  api_key_name: cortex\n"
        (Path(folder) / "extra-openai-models.yaml").write_text(models)
        (Path(folder) / "keys.json").write_text('{"cortex": "none"}')
        environment = os.environ | {
            "CORTEX_URL": url,
            "CORTEX_MODEL": MODEL,
            "LLM_USER_PATH": folder,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LANGCHAIN_TRACING_V2": "false",
        }
        return sum([not succeeds(name, command, environment) for name, command in commands(url).items()]) and 1


def succeeds(name: str, command: list[str], environment: dict[str, str]) -> bool:
    """Whether the client printed text (a script: at least 5 pieces). Prints the result."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        print(f"{name}: FAILED: still not done after {SECONDS:.0f} s")
        return False
    pieces = [line for line in done.stdout.splitlines() if line.startswith("piece '") and line != "piece ''"]
    is_script = command[0] == sys.executable
    if done.returncode or not done.stdout.strip() or (is_script and len(pieces) < 5):
        print(f"{name}: FAILED with {done.returncode}\n{done.stdout}{done.stderr}")
        return False
    print(f"{name}: ok, {f'{len(pieces)} pieces' if is_script else repr(done.stdout.strip())}")
    return True


if __name__ == "__main__":
    sys.exit(main())
