"""The results as JSON: what bench/results/families.json has."""

from dataclasses import asdict
from typing import Any

from scheduler.llama.model import LLAMA_CPP_VERSION
from tests.families.cases import Answer
from tests.families.results import Report, Result, Run

Record = dict[str, Any]
"""JSON."""


def as_record(run: Run, command: str, *, with_texts: bool = False) -> Record:
    """`with_texts`: also has models' outputs and answers. They are the peer's, so they do not belong here."""
    found: Record = {"command": command, "llama_cpp_python": LLAMA_CPP_VERSION, "summary": run.summary}
    if run.extracted is not None:
        found["extracted"] = {
            "written": run.extracted.written,
            "sites": run.extracted.sites,
            "reached": run.extracted.reached,
            "cases": len(run.extracted.cases),
            "problems": run.extracted.problems,
        }
    found["templates"] = [_template(report, with_texts) for report in run.reports]
    found["others"] = [_template(report, with_texts) for report in run.others]
    return found


def _template(report: Report, with_texts: bool) -> Record:
    grammar = report.grammar
    return {
        "template": report.template,
        "compiles": not report.compiles,
        "error": report.compiles,
        "dialect": report.dialect,
        "thinks": report.thinks,
        "learned": report.learned,
        "renders": report.renders,
        "two_calls": report.two_calls,
        "right": report.is_right,
        "passed": report.count("passed"),
        "failed": report.count("failed"),
        "skipped": report.count("skipped"),
        "passed_under_controls": report.num_under_controls,
        **({"call": grammar.call} if with_texts else {}),
        "native": report.native,
        "auto": grammar.auto,
        "grammar": grammar.one,
        "grammar_two": grammar.two,
        "grammar_under_controls": grammar.under_controls,
        "missing_markers": report.missing_markers,
        "cases": [_case(result, with_texts) for result in report.results],
    }


def _case(result: Result, with_texts: bool) -> Record:
    record: Record = {
        "line": result.case.line,
        "verdict": result.verdict,
        "why": result.why,
        "white_space_differs": result.trimmed,
        "under_controls": result.under_controls,
    }
    if with_texts:
        record |= {
            "detail": result.detail,
            "raw": result.case.raw,
            "expected": _answer(result.case.expected),
            "got": result.got and _answer(result.got),
        }
    return record


def _answer(answer: Answer) -> Record:
    return asdict(answer)
