"""The state of batches in the database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from api.storage.batch import ENDED, Batch, InputError, Line, Usage
from api.storage.batches import MAX_OPEN, BatchStore, CannotCancelError, FileInUseError, TooManyBatchesError
from api.storage.storage import Storage

CHAT = "/v1/chat/completions"


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    storage = Storage(tmp_path)
    yield storage
    storage.close()


def upload(storage: Storage, owner: str = "ann") -> str:
    upload = storage.files.begin(owner, "in.jsonl", "batch")
    upload.write(b"{}\n")
    return upload.finish().id


def create(storage: Storage, owner: str = "ann", file: str | None = None) -> Batch:
    return storage.batches.create(owner, owner, CHAT, file or upload(storage, owner), {"a": "b"}, 3600)


def lines(count: int) -> list[Line]:
    return [Line(number, f"id-{number}", 0, 3, 0, count - number) for number in range(1, count + 1)]


def begin(storage: Storage, count: int) -> Batch:
    batch = create(storage)
    storage.batches.begin(batch.number, lines(count), count, ["m"], ["m"])
    return storage.batches.by_number(batch.number)


def test_a_batch_belongs_to_its_owner(storage: Storage) -> None:
    batch = create(storage)
    assert storage.batches.get("ann", batch.id) == batch
    assert storage.batches.get("bob", batch.id) is None
    assert storage.batches.cancel("bob", batch.id) is None
    assert storage.batches.page("bob") == []
    with pytest.raises(KeyError):
        storage.batches.page("bob", after=batch.id)
    with pytest.raises(KeyError):
        create(storage, "bob", file=batch.input_file)


def test_pages_begin_with_the_newest(storage: Storage) -> None:
    file = upload(storage)
    made = [create(storage, file=file).id for _ in range(5)]
    pages, after = [], None
    while page := storage.batches.page("ann", after, limit=2):
        pages.append([each.id for each in page])
        after = page[-1].id
    assert [each for page in pages for each in page] == made[::-1]
    assert list(map(len, pages)) == [2, 2, 1]


def test_an_owner_has_a_bounded_number_of_open_batches(storage: Storage) -> None:
    file = upload(storage)
    made = [create(storage, file=file) for _ in range(MAX_OPEN)]
    with pytest.raises(TooManyBatchesError, match="may have 100"):
        create(storage, file=file)
    create(storage, "bob")
    storage.batches.fail(made[0].number, [InputError("empty_file", "It is empty.")])
    create(storage, file=file)


def test_errors_are_kept(storage: Storage) -> None:
    batch = create(storage)
    error = InputError("invalid_json_line", "No JSON.", None, 3)
    storage.batches.fail(batch.number, [error])
    failed = storage.batches.by_number(batch.number)
    assert (failed.status, list(failed.errors)) == ("failed", [error])


def test_a_line_is_answered_once(storage: Storage) -> None:
    batch = begin(storage, 2)
    assert storage.batches.record(batch.number, 1, b"first\n", Usage(5, 3, 2, 1))
    assert not storage.batches.record(batch.number, 1, b"second\n", Usage(50, 30, 20, 10))
    assert not storage.batches.record(batch.number, 1, b"third\n", None)
    now = storage.batches.by_number(batch.number)
    assert (now.completed, now.failed, now.usage) == (1, 0, Usage(5, 3, 2, 1))
    [answered] = storage.batches.answered(batch.number, 0, is_error=False)
    assert answered.data == b"first\n"


def test_pending_lines_come_in_the_order_of_execution(storage: Storage) -> None:
    batch = begin(storage, 5)
    storage.batches.record(batch.number, 3, b"x\n", None)
    found = storage.batches.pending(batch.number, 0, -1, 2)
    assert [each.line for each in found] == [5, 4]
    assert [each.line for each in storage.batches.pending(batch.number, 0, found[-1].place, 9)] == [2, 1]


def test_a_file_that_a_batch_reads_is_kept(storage: Storage) -> None:
    batch = create(storage)
    with pytest.raises(FileInUseError, match=batch.id):
        storage.files.delete("ann", batch.input_file, storage.batches.keeps_used_files)
    storage.batches.fail(batch.number, [])
    assert storage.files.delete("ann", batch.input_file, storage.batches.keeps_used_files)


def test_watchers_hear_of_new_and_cancelled_batches(storage: Storage) -> None:
    heard: list[int] = []
    storage.batches.watch(heard.append)
    batch = create(storage)
    storage.batches.cancel("ann", batch.id)
    storage.batches.cancel("ann", batch.id)
    assert heard == [batch.number, batch.number]


class Life(RuleBasedStateMachine):
    """A batch of some lines, and its store, which may be closed and opened at any time."""

    NUM_LINES = 4
    folder: Path
    number_of_folders = 0

    def __init__(self) -> None:
        super().__init__()
        Life.number_of_folders += 1
        self.path = self.folder / str(Life.number_of_folders)
        self.storage = Storage(self.path)
        self.batch = create(self.storage)
        self.answers: dict[int, bool] = {}
        """Whether the answer of a line is an error."""

    @property
    def store(self) -> BatchStore:
        return self.storage.batches

    @property
    def now(self) -> Batch:
        return self.store.by_number(self.batch.number)

    def teardown(self) -> None:
        now = self.now
        completed = sum(not is_error for is_error in self.answers.values())
        assert now.completed == completed
        if now.status in ("completed", "expired", "cancelled"):
            assert now.completed + now.failed == now.total
            assert getattr(now, f"{now.status}_at") is not None
        else:
            assert now.failed == len(self.answers) - completed
        if now.status == "failed":
            assert now.total == 0
        self.storage.close()

    @rule()
    def reopen(self) -> None:
        self.storage.close()
        self.storage = Storage(self.path)

    @rule()
    def begin(self) -> None:
        was = self.now.status
        self.store.begin(self.batch.number, lines(self.NUM_LINES), self.NUM_LINES, ["m"], [])
        assert (self.now.status == "in_progress") == (was in ("validating", "in_progress"))

    @rule()
    def fail(self) -> None:
        was = self.now.status
        self.store.fail(self.batch.number, [])
        assert self.now.status == ("failed" if was == "validating" else was)

    @rule(line=st.integers(1, NUM_LINES), is_error=st.booleans())
    def answer(self, line: int, is_error: bool) -> None:
        if not self.now.total:
            return
        takes = self.now.status in ("in_progress", "cancelling") and line not in self.answers
        recorded = self.store.record(self.batch.number, line, b"x\n", None if is_error else Usage(1, 1, 1, 1))
        assert recorded == takes
        if recorded:
            self.answers[line] = is_error

    @rule()
    def cancel(self) -> None:
        was = self.now.status
        if was in (*ENDED, "finalizing"):
            with pytest.raises(CannotCancelError, match=f"Cannot cancel a batch with status '{was}'"):
                self.store.cancel("ann", self.batch.id)
            return
        cancelled = self.store.cancel("ann", self.batch.id)
        assert cancelled is not None
        assert cancelled.status == "cancelling"

    @precondition(lambda self: self.now.total)
    @rule(ending=st.sampled_from(["completed", "expired"]))
    def finalize(self, ending: str) -> None:
        was = self.now.status
        self.store.finalize(self.batch.number, ending)  # type: ignore[arg-type]  # one of the two
        assert self.now.status == ("finalizing" if was == "in_progress" else was)

    @precondition(lambda self: self.now.ending is not None)
    @rule()
    def end(self) -> None:
        self.store.end(self.batch.number)
        assert self.now.status == self.now.ending
        assert (self.batch.number in self.store.unfinished()) is False


def test_a_batch_keeps_its_counts_in_every_order_of_events(tmp_path: Path) -> None:
    Life.folder = tmp_path
    run_state_machine_as_test(Life, settings=settings(max_examples=12, stateful_step_count=12))
