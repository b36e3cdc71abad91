"""The results as text: a table with one line for each template, then totals."""

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.families.cases import Case
from tests.families.results import CONVERSATIONS, Report, Run


def table(reports: Sequence[Report]) -> Iterator[str]:
    """One line for each template.

    render: a letter for each kind of conversation, `-` if it is refused, `!` if a part of it is missing or garbled.
    grammar, controls: see docs/families.md.
    """
    width = max(len(report.name) for report in reports)
    yield f"{'template':{width}}  dialect  thinks render  cases        grammar    controls   why"
    for report in reports:
        if report.compiles:
            yield f"{report.name:{width}}  does not compile: {report.compiles[:100]}"
            continue
        marks = "".join(
            kind[0] if not why else "-" if why.startswith("refused") else "!" for kind, why in report.renders.items()
        )
        yield (
            f"{report.name:{width}}  {report.dialect:8} {'yes' if report.thinks else 'no':6} {marks:6}  "
            f"{_cases(report):11}  {_grammar(report):9}  {_controls(report):9}  {_whys(report)}"
        ).rstrip()


def _cases(report: Report) -> str:
    skipped = report.count("skipped")
    return f"{report.count('passed')}/{len(report.measured)}" + (f" +{skipped}s" if skipped else "")


def _grammar(report: Report) -> str:
    grammar = report.grammar
    if grammar.one is None:
        return ""
    if grammar.one:
        return f"no/{grammar.auto}"
    return "ok, 2 no" if grammar.two else "ok"


def _controls(report: Report) -> str:
    parts = [f"{report.num_under_controls}/{len(report.measured)}"]
    if report.grammar.under_controls is not None:
        parts.append("no" if report.grammar.under_controls else "ok")
    return " ".join(parts)


def _whys(report: Report) -> str:
    whys = Counter(result.why for result in report.results if result.verdict == "failed")
    parts = [f"{count} {why}" for why, count in whys.most_common(3)]
    parts += [f"{kind}: {why[:60]}" for kind, why in report.renders.items() if why]
    return "; ".join(parts)


def others(reports: Sequence[Report]) -> Iterator[str]:
    """Of templates without cases: also what is learned, and the call that the template itself writes."""
    yield from table(reports)
    yield ""
    for report in reports:
        yield f"{report.name}: {report.learned or report.compiles}"
        grammar = report.grammar
        if grammar.one is not None:
            yield f"  writes {grammar.call!r}"
        for label, why in (("one call", grammar.one), ("two calls", grammar.two), ("controls", grammar.under_controls)):
            if why:
                yield f"  the grammar refuses it ({label}): {why}"
    right = sum(report.is_right for report in reports)
    yield f"other templates: {right} of {len(reports)} right"


def details(reports: Sequence[Report]) -> Iterator[str]:
    """One line for each case that is not passed, and for each call that the grammar refuses."""
    for report in reports:
        for result in report.results:
            if result.verdict != "passed":
                yield f"{result.verdict}  {report.template}:{result.case.line}  {result.why}  {result.detail[:300]}"
            elif result.under_controls:
                yield f"controls  {report.template}:{result.case.line}  {result.under_controls}"
        if report.grammar.one:
            yield f"grammar  {report.template}  {report.grammar.one}  {report.grammar.call!r}"


def totals(run: Run) -> Iterator[str]:
    yield from _totals_of_templates(run)
    yield from _totals_of_cases(run)
    yield from _totals_of_controls(run)
    yield from _totals_of_grammars(run)
    yield from _totals_of_extraction(run)


def _totals_of_templates(run: Run) -> Iterator[str]:
    reports, compiled = run.reports, [report for report in run.reports if not report.compiles]
    yield f"compile: {len(compiled)} of {len(reports)} templates"
    for kind in CONVERSATIONS:
        whys = [report.renders[kind] for report in compiled]
        yield f"render {kind}: {sum(not why for why in whys)} of {len(reports)}" + "".join(
            f", {sum(why.startswith(word) for why in whys)} {word}"
            for word in ("refused", "lost", "garbled")
            if any(why.startswith(word) for why in whys)
        )
    two = [report.two_calls for report in compiled]
    yield f"render two calls in one answer (a note): {sum(not why for why in two)} of {len(reports)}"
    dialects = Counter(report.dialect for report in compiled)
    yield "dialects: " + ", ".join(f"{count} {name}" for name, count in dialects.most_common())
    names = [report.name for report in reports if report.native]
    yield f"native: {len(names)} templates raise on calls if rendered by themselves: {', '.join(names)}"


def _totals_of_cases(run: Run) -> Iterator[str]:
    for verdict in ("skipped", "failed"):
        whys = Counter(result.why for result in run.results if result.verdict == verdict)
        yield f"{verdict}: {whys.total()}"
        yield from (f"  {count:4} {why}" for why, count in whys.most_common())
    measured = [result for result in run.results if result.verdict != "skipped"]
    for name in ("calls", "thoughts", "neither"):
        of_kind = [result for result in measured if name in _kinds(result.case)]
        yield f"cases with {name}: {sum(result.verdict == 'passed' for result in of_kind)} of {len(of_kind)}"
    passed = [result for result in measured if result.verdict == "passed"]
    yield f"white space at ends differs in {sum(result.trimmed for result in passed)} of {len(passed)} passed"


def _kinds(case: Case) -> set[str]:
    kinds = {"calls"} if case.expected.calls else set()
    kinds |= {"thoughts"} if case.expected.reasoning else set()
    return kinds or {"neither"}


def _totals_of_controls(run: Run) -> Iterator[str]:
    measured = [result for report in run.reports for result in report.measured]
    passed = [result for result in measured if result.verdict == "passed"]
    right, same = ([r for r in some if r.under_controls == ""] for some in (measured, passed))
    yield (
        f"controls (a note): {len(right)} of {len(measured)} cases are right if every mark is a token; "
        f"{len(same)} of the {len(passed)} passed ones"
    )
    tested = [r.grammar.under_controls for r in run.reports if r.grammar.under_controls is not None]
    yield f"controls (a note): {sum(not why for why in tested)} of {len(tested)} templates' own call accepted then"
    missing = sum(bool(report.missing_markers) for report in run.reports)
    yield f"controls: in {missing} templates calls are written with such marks that the dialect does not list"


def _totals_of_grammars(run: Run) -> Iterator[str]:
    grammars = [report.grammar for report in run.reports]
    for label, whys in (("one call", [g.one for g in grammars]), ("two calls", [g.two for g in grammars])):
        tested = [why for why in whys if why is not None]
        yield f"grammar: {sum(not why for why in tested)} of {len(tested)} templates' own writing of {label} accepted"
    for auto, meaning in (("bent", "is forced into another form"), ("lost", "stays in the content")):
        count = sum(grammar.auto == auto for grammar in grammars)
        yield f"grammar: in {count} of the others a call that is left to the model {meaning}"


def _totals_of_extraction(run: Run) -> Iterator[str]:
    extracted = run.extracted
    assert extracted is not None, "there are reports of cases only with the peer's sources"
    if absent := {case.template for case in extracted.cases} - {report.template for report in run.reports}:
        yield f"not measured: cases of {len(absent)} other templates"
    yield (
        f"extracted: {extracted.reached} of {extracted.sites} call sites ({extracted.share:.1%}; {extracted.written} "
        f"`.test(` with those in comments), which make {len(extracted.cases)} cases by loops"
    )
    yield from (f"  line {line}: {why}" for line, why in extracted.problems[:20])
