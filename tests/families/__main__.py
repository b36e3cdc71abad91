"""`python -m tests.families --llama PATH`: are the answers of every family's models read right?

`make families` runs it on the sources that `make peers-source` unpacks: on the chat templates and on the recorded model
outputs of llama.cpp's own tests. Its test file is read and interpreted; nothing is compiled and nothing is copied.
docs/families.md describes what is measured. Exits with 1 if something is not right for which that page has no reason
(it has none for templates of `--templates`), with 2 if nothing could be measured.
"""

import argparse
import json
import random
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.families.extraction import Extracted, extract
from tests.families.grammars import check_on_smollm2
from tests.families.measure import measure
from tests.families.page import PAGE, RESULTS, markdown, put_table
from tests.families.reasons import reasons_of, unexplained
from tests.families.records import as_record
from tests.families.report import details, others, table, totals
from tests.families.results import Report, Run

LEAST_EXTRACTED = 0.95


def main() -> int:
    options = _options()
    extracted = extract((options.llama / "tests" / "test-chat.cpp").read_text("utf-8")) if options.llama else None
    if extracted is not None and options.sites:
        _show_sites(extracted, options.sites, options.seed)
        return 0
    paths = _templates(options.llama / "models" / "templates", options.only) if options.llama else []
    other_paths = _templates(options.templates, options.only) if options.templates else []
    if not paths + other_paths or (extracted is not None and extracted.share < LEAST_EXTRACTED):
        _complain(len(paths + other_paths), extracted)
        return 2
    run = _measure(paths, other_paths, extracted, with_grammars=not options.no_grammar)
    record = as_record(run, shlex.join(["python", "-m", "tests.families", *sys.argv[1:]]), with_texts=options.texts)
    if options.json:
        options.json.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    if options.docs:
        put_table(PAGE, RESULTS)
    if options.markdown:
        print(markdown([*record["templates"], *record["others"]]), end="")
    else:
        _print(run, with_details=options.cases)
    missing = unexplained(record, reasons_of(PAGE.read_text()))
    if missing:
        print(f"{len(missing)} failures have no reason in docs/{PAGE.name}", file=sys.stderr)
    return int(bool(missing) or not all(report.is_right for report in run.others))


def _options() -> argparse.Namespace:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__, formatter_class=about)
    parser.add_argument("--llama", type=Path, help="the root of llama.cpp's sources")
    parser.add_argument("--templates", type=Path, help="a folder with other templates (*.jinja), which have no cases")
    parser.add_argument("--only", default="", help="parts of templates' names, separated by commas")
    parser.add_argument("--cases", action="store_true", help="print one line for each case that is not passed")
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown instead")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--texts", action="store_true", help="with --json: also the models' outputs and the answers")
    parser.add_argument("--docs", action="store_true", help=f"write the table of docs/{PAGE.name} from {RESULTS.name}")
    parser.add_argument("--no-grammar", action="store_true", help="do not measure grammars")
    parser.add_argument("--sites", type=int, help="only print so many random cases, to compare them with the source")
    parser.add_argument("--seed", type=int, help="with --sites: which ones")
    options = parser.parse_args()
    if options.llama is None and options.templates is None:
        parser.error("give --llama, --templates or both")
    return options


def _templates(folder: Path, only: str) -> list[Path]:
    parts = [part.lower() for part in only.split(",") if part]
    paths = sorted(folder.glob("*.jinja"), key=lambda path: path.name.lower())
    return [path for path in paths if not parts or any(part in path.name.lower() for part in parts)]


def _complain(num_templates: int, extracted: Extracted | None) -> None:
    print(f"nothing is measured: {num_templates} templates", file=sys.stderr)
    if extracted is not None:
        print(f"{extracted.share:.1%} of the cases are understood", file=sys.stderr)
        for line, why in extracted.problems[:20]:
            print(f"  line {line}: {why}", file=sys.stderr)


def _measure(
    paths: Iterable[Path], other_paths: Iterable[Path], extracted: Extracted | None, *, with_grammars: bool
) -> Run:
    check = check_on_smollm2() if with_grammars else None

    def report(path: Path, *, is_other: bool) -> Report:
        cases = [] if is_other or extracted is None else [c for c in extracted.cases if c.template == path.name]
        return measure(path.name, path.read_text("utf-8"), cases, check)

    reports = [report(path, is_other=False) for path in paths]
    return Run(reports, extracted, [report(path, is_other=True) for path in other_paths])


def _print(run: Run, *, with_details: bool) -> None:
    lines: list[str] = []
    if run.others:
        lines += [*others(run.others), ""]
    if run.reports:
        lines += [*table(run.reports), ""]
        lines += [*details(run.reports), ""] if with_details else []
        lines += [*totals(run), f"families: {run.summary}"]
    print("\n".join(lines))


def _show_sites(extracted: Extracted, count: int, seed: int | None) -> None:
    for case in random.Random(seed).sample(extracted.cases, count):
        print(f"line {case.line}  {case.template}")
        print(f"  raw       {case.raw!r}")
        print(f"  expected  {case.expected}")
        print(f"  tools     {[tool['function']['name'] for tool in case.tools]} choice={case.tool_choice}")
        print(
            f"  thinking={case.thinking} format={case.format} parallel={case.parallel} schema={case.schema}"
            f" continues={case.continues} messages={len(case.messages)} skip={case.skip!r}"
        )


if __name__ == "__main__":
    sys.exit(main())
