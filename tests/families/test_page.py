"""docs/families.md has the results that `make families` wrote, and a reason for everything that is not right."""

import json

import pytest

from tests.families.page import PAGE, RESULTS, with_table
from tests.families.reasons import needless, reasons_of, unexplained
from tests.families.records import Record


@pytest.fixture(scope="module")
def record() -> Record:
    record: Record = json.loads(RESULTS.read_text())
    return record


def test_the_docs_have_the_table_of_the_results(record: Record) -> None:
    text = PAGE.read_text()
    assert with_table(text, record) == text


def test_every_failure_has_a_reason(record: Record) -> None:
    reasons = reasons_of(PAGE.read_text())
    assert unexplained(record, reasons) == []
    assert needless(record, reasons) == []


def test_no_case_is_skipped_that_once_was_measured(record: Record) -> None:
    """A skip that is added to the rules would look like a success."""
    assert record["llama_cpp_python"] == "0.3.36", "count the cases of another version anew"
    cases = [case for template in record["templates"] for case in template["cases"]]
    assert len(cases) == record["extracted"]["cases"] == 463
    assert sum(case["verdict"] == "skipped" for case in cases) == 71
    assert record["extracted"]["problems"] == []
