"""`cortex batch` against a stand-in for the server."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from api.command import batch, cli, terminal

ENDED = {"total": 2, "completed": 1, "failed": 1}


class Api:
    """Answers the requests of one batch. `states` are what it answers about the batch, one after another."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.states: list[dict[str, Any]] = [
            self.batch("validating", {"total": 0, "completed": 0, "failed": 0}),
            self.batch("in_progress", {"total": 2, "completed": 1, "failed": 0}),
            self.batch("completed", ENDED, output_file_id="file-out", error_file_id="file-err"),
        ]

    @staticmethod
    def batch(status: str, counts: dict[str, int], **fields: Any) -> dict[str, Any]:
        empty = {"errors": None, "output_file_id": None, "error_file_id": None}
        batch = {"id": "batch_1", "status": status, "endpoint": "/v1/chat/completions", "created_at": 1_000_000}
        return batch | {"request_counts": counts} | empty | fields

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        match request.method, request.url.path:
            case "POST", "/v1/files":
                return httpx.Response(200, json={"id": "file-in"})
            case "POST", "/v1/batches":
                return httpx.Response(200, json=self.states[0])
            case "POST", "/v1/batches/batch_1/cancel":
                return httpx.Response(200, json=self.states[0])
            case "GET", "/v1/batches":
                return httpx.Response(200, json={"data": [self.states[-1]]})
            case "GET", "/v1/batches/batch_1":
                return httpx.Response(200, json=self.states.pop(0) if len(self.states) > 1 else self.states[0])
            case "GET", "/v1/files/file-out/content":
                return httpx.Response(200, content=b'{"custom_id": "a"}\n')
            case "GET", "/v1/files/file-err/content":
                return httpx.Response(200, content=b'{"custom_id": "b"}\n')
        return httpx.Response(404, json={"error": {"message": f"No batch found with id {request.url.path}."}})


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Api:
    api = Api()

    def client_of(record: object) -> httpx.Client:
        return httpx.Client(base_url="http://server/v1", transport=httpx.MockTransport(api))

    monkeypatch.setattr(batch, "client_of", client_of)
    monkeypatch.setattr(batch, "read_record", lambda: SimpleNamespace())
    monkeypatch.setattr(batch, "POLL_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"custom_id": "a", "url": "/v1/responses"}\n{"custom_id": "b"}\n')
    return api


Cortex = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cortex(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cortex:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cortex", "batch", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_run_writes_answers_and_errors(api: Api, cortex: Cortex) -> None:
    code, out, err = cortex("run", "in.jsonl")
    assert (code, out) == (1, "")
    assert err == (
        "completed: 1 of 2 answers are in in.output.jsonl\n"
        "cortex: 1 requests failed; their errors are in in.errors.jsonl\n"
    )
    assert Path("in.output.jsonl").read_text() == '{"custom_id": "a"}\n'
    assert Path("in.errors.jsonl").read_text() == '{"custom_id": "b"}\n'
    assert b'"custom_id": "b"' in api.requests[0].content
    assert b'name="purpose"' in api.requests[0].content
    assert json.loads(api.requests[1].content) == {
        "input_file_id": "file-in",
        "endpoint": "/v1/responses",
        "completion_window": "24h",
    }


def test_run_without_failures_exits_with_0(api: Api, cortex: Cortex) -> None:
    counts = {"total": 2, "completed": 2, "failed": 0}
    api.states = [api.batch("completed", counts, output_file_id="file-out")]
    assert cortex("run", "in.jsonl", "--endpoint", "/v1/completions", "--output", "answers.jsonl")[0] == 0
    assert json.loads(api.requests[1].content)["endpoint"] == "/v1/completions"
    assert sorted(path.name for path in Path().iterdir()) == ["answers.jsonl", "in.jsonl"]


def test_files_are_never_overwritten(api: Api, cortex: Cortex) -> None:
    Path("in.errors.jsonl").write_text("mine")
    code, _, err = cortex("run", "in.jsonl")
    assert (code, err) == (1, "cortex: in.errors.jsonl exists; choose another file with --output or --errors\n")
    assert api.requests == []


def test_a_bad_file_is_explained_line_by_line(api: Api, cortex: Cortex) -> None:
    errors = [
        {"line": 3, "message": "This line is not parseable as valid JSON."},
        {"line": None, "message": "Too many."},
    ]
    none = {"total": 0, "completed": 0, "failed": 0}
    api.states = [api.batch("failed", none, errors={"data": errors})]
    code, _, err = cortex("run", "in.jsonl")
    assert (code, err) == (
        1,
        (
            "cortex: the batch failed, because its file cannot be used\n"
            "  line 3: This line is not parseable as valid JSON.\n  Too many.\n"
        ),
    )


def test_ctrl_c_says_how_to_go_on(api: Api, cortex: Cortex, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "time", SimpleNamespace(sleep=interrupt))
    code, _, err = cortex("run", "in.jsonl")
    assert code != 0
    assert "the batch goes on. 'cortex batch wait batch_1 --output in.output.jsonl' waits for it" in err
    assert all("cancel" not in request.url.path for request in api.requests)
    monkeypatch.setattr(batch, "time", SimpleNamespace(sleep=lambda seconds: None))
    assert "1 of 2 answers" in cortex("wait", "batch_1", "--output", "in.output.jsonl")[2]
    assert Path("in.errors.jsonl").exists()


def test_list_and_cancel(api: Api, cortex: Cortex) -> None:
    code, out, _ = cortex("list")
    assert code == 0
    assert [line.split() for line in out.splitlines()][1][:6] == [
        *("batch_1", "completed", "/v1/chat/completions", "1", "1", "2")
    ]
    assert json.loads(cortex("list", "--json")[1]) == [api.states[-1]]
    assert cortex("cancel", "batch_1") == (0, "batch_1 is being cancelled.\n", "")
    code, _, err = cortex("cancel", "batch_2")
    assert (code, err) == (1, "cortex: No batch found with id /v1/batches/batch_2/cancel.\n")


def test_without_a_server_nothing_runs(api: Api, cortex: Cortex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "read_record", lambda: None)
    assert cortex("list") == (1, "", "cortex: no server runs; start one with 'cortex run -d MODEL'\n")


def test_a_server_that_ends_is_reported(api: Api, cortex: Cortex, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(Api, "__call__", lambda self, request: fail(request))
    code, _, err = cortex("run", "in.jsonl")
    assert code == 1
    assert err == ("cortex: the server has ended or does not answer (refused); batches go on when it runs again\n")


def test_the_bar_is_not_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.line_bar("batch_1") as show:
        show("validating", 0, 0)
        show("in_progress", 3, 10)
    assert capsys.readouterr() == ("", "")
