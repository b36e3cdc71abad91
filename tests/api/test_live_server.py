"""A real server that somebody watches: what its engine computes, and the end of the server."""

import threading
from pathlib import Path

import httpx
from openai import OpenAI

from api.protocols.live.types import LiveEvent, LiveModel
from tests.api.servers import MODEL, SECONDS, CortexServer, wait_until


class Feed:
    """Reads events in a thread until the server ends the stream."""

    def __init__(self, server: CortexServer) -> None:
        self.models: list[LiveModel] = []
        self.has_ended = False
        """Whether the stream has ended as it should."""
        self._url = f"{server.url}/live"
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with httpx.stream("GET", self._url, timeout=SECONDS) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.models += LiveEvent.model_validate_json(line.removeprefix("data: ")).models
        self.has_ended = True

    def tokens(self) -> tuple[int, int]:
        """All tokens of prompts and of answers that the events have told."""
        rows = [row for model in self.models for step in model.steps for row in step.rows]
        return sum(row[1] for row in rows), sum(row[2] + row[4] for row in rows)


def test_a_feed_tells_what_the_engine_computes_until_the_server_ends(tmp_path: Path) -> None:
    secret = "xylophone"
    with CortexServer(tmp_path, "--ctx-len=256", "--max-seqs=2", "--disk-cache=0") as server:
        feed = Feed(server)
        wait_until(lambda: any(model.pages for model in feed.models), "the engine has shown its pages")
        with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            usage = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Say {secret} and more."}],
                max_tokens=8,
                user="ann",
                extra_body={"ignore_eos": True},
            ).usage
        assert usage is not None
        # The last of the 8 tokens needs no step.
        wait_until(lambda: feed.tokens() == (usage.prompt_tokens, 7), "all steps have arrived")
        wait_until(lambda: feed.models[-1].latency.itl is not None, "latencies have arrived")
        assert "user:ann" in {row[0] for model in feed.models for step in model.steps for row in step.rows}
        assert secret not in "".join(model.model_dump_json() for model in feed.models)
        wait_until(lambda: (pages := feed.models[-1].pages) is not None and pages.cached > 0, "pages are cached")
        assert server.stop() == 0
        feed.thread.join(SECONDS)
        assert feed.has_ended, "the server ends the stream properly before it exits"
