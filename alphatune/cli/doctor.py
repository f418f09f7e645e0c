"""``alphatune doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import typer

from alphatune.cli import options as o
from alphatune.cli.usage import as_options

if TYPE_CHECKING:  # results are not waited for by --help
    from alphatune.results.diagnosis import Finding

#: the exit code where something that is needed does not work
BROKEN = 5

_STYLES = {"ok": "green", "note": "yellow", "missing": "dim", "broken": "bold red"}


def doctor(
    format: o.Format = "human",
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Look at this installation and this machine: what works, what is missing, and the line that adds it.

    Versions, devices, decoders, compilers, memory, folders and optional packages, each tried rather than looked
    up. Nothing is installed and no network is used. Exit code 5 if something that alphatune needs is broken.

    [bold]Examples[/bold]

    alphatune doctor
    # a table

    alphatune doctor --format json > doctor.json
    # for a bug report
    """
    from alphatune.cli import console
    from alphatune.results.serialisation import to_json

    with console.progress_bar(quiet, "looking at this machine"):
        from alphatune.jobs.doctor import run_doctor

        document = run_doctor()
    if format == "json":
        print(to_json(document, for_pipe=True))
    elif format == "quiet":
        print(" ".join(f"{status}={count}" for status, count in document.summary.items()))
    else:
        _show(document.findings, verbose)
    if not document.ok:
        broken = [f for f in document.findings if f.status == "broken"]
        console.fail([f"{f.name}: {f.detail}" for f in broken])
        raise typer.Exit(BROKEN)


def _show(findings: Sequence[Finding], verbose: bool) -> None:
    """A block for each group; hints under what they help."""
    from rich.table import Table
    from rich.text import Text

    from alphatune.cli import console

    out = console.stdout()
    widest = max(len(finding.name) for finding in findings)
    for group, members in groupby(findings, key=lambda finding: finding.group):
        table = Table(title=group, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.show_header = False
        table.add_column(min_width=max(map(len, _STYLES)))
        table.add_column(min_width=widest)
        table.add_column()
        for finding in members:
            status = Text(finding.status, style=_STYLES[finding.status])
            detail = Text(as_options(finding.detail))
            if finding.hint:
                detail.append(f"\n{as_options(finding.hint)}", style="cyan")
            if verbose and finding.facts:
                facts = ", ".join(f"{name} {value}" for name, value in finding.facts.items())
                detail.append(f"\n{facts}", style="dim")
            table.add_row(status, Text(finding.name), detail)
        out.print(table)
        out.print()
    counts = {s: sum(f.status == s for f in findings) for s in ("broken", "missing", "note")}
    if counts["broken"]:
        sentence = f"{counts['broken']} of the things that alphatune needs do not work."
    else:
        sentence = "Everything that alphatune needs works."
    if counts["missing"]:
        sentence += f" Optional and missing: {counts['missing']}."
    out.print(Text(sentence, style="bold"))
