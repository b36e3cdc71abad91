"""Measures one template."""

import re
from collections.abc import Iterable, Sequence

from tests.families.cases import Case
from tests.families.grammars import Check, measure_grammars
from tests.families.judging import judge, judge_under_controls
from tests.families.product import BareTemplate, Family, RefusedError
from tests.families.rendering import render_all
from tests.families.results import Report, Result
from tests.families.written import refusal_of_calls
from tests.stub_vocabulary import CONTROL_LIKE, PRINTED, TAG


def measure(name: str, source: str, cases: Sequence[Case], check: Check | None) -> Report:
    """`name`: of the template's file. Without a `check`, grammars are not measured."""
    report, texts = Report(name), [source, *(case.raw for case in cases)]
    try:
        family, controlled = Family(source), Family(source, _controls(texts), _user_defined(texts))
    except RefusedError as refusal:
        report.compiles = str(refusal)
        report.results = [Result(case, "failed", "does not compile") for case in cases]
        return report
    template, syntax = BareTemplate(source), family.syntax
    report.dialect, report.thinks, report.learned = syntax.name, syntax.thinks, syntax.learned
    report.renders = render_all(family)
    report.two_calls = report.renders.pop("two calls")
    report.results = [judge(family, case) for case in cases]
    for result in report.measured:
        result.under_controls = judge_under_controls(controlled, result.case)
    marks = _controls(case.raw for case in cases if case.expected.calls)
    report.missing_markers = sorted(each for each in set(marks) if not any(each in mark for mark in syntax.marks))
    report.native = refusal_of_calls(template, source)
    if check is not None:
        report.grammar = measure_grammars(template, family, controlled, check)
    return report


def _controls(texts: Iterable[str]) -> list[str]:
    """What looks like a control token, without those that llama.cpp prints."""
    return [mark for mark in _found(CONTROL_LIKE, texts) if mark not in PRINTED]


def _user_defined(texts: Sequence[str]) -> list[str]:
    """Control tokens that llama.cpp prints, and tags, which are user-defined tokens in many vocabularies."""
    return [mark for mark in _found(CONTROL_LIKE, texts) if mark in PRINTED] + _found(TAG, texts)


def _found(pattern: re.Pattern[str], texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(mark for text in texts for mark in pattern.findall(text)))
