"""The ``alphatune`` command: its subcommands, and what becomes of an error."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from functools import partial
from io import TextIOWrapper
from itertools import pairwise
from typing import Annotated

import typer

from alphatune.cli.bench import bench
from alphatune.cli.compare import compare
from alphatune.cli.demo import demo
from alphatune.cli.doctor import doctor
from alphatune.cli.evaluate import evaluate
from alphatune.cli.export import export
from alphatune.cli.help import Command, Group
from alphatune.cli.inspect import inspect
from alphatune.cli.memory import keep_freed_memory
from alphatune.cli.report import report
from alphatune.cli.schema import schema
from alphatune.cli.signals import HungUp, Terminated, signals_ignored, signals_raised
from alphatune.cli.stderr import tell
from alphatune.cli.study import study
from alphatune.cli.threads import spin_briefly
from alphatune.cli.train import train
from alphatune.cli.tune import tune
from alphatune.cli.usage import as_options, explain, name_owners, require_utf8
from alphatune.core.errors import AlphatuneError, machine_failure, one_line
from alphatune.core.saved_progress import is_something_saved
from alphatune.core.version import VERSION

app = typer.Typer(
    name="alphatune",
    cls=Group,
    help="Make a trained BatchNorm network better without retraining it.",
    epilog=(
        "Exit codes: 0 done, also when α = 0 is best; 1 a gate failed; 2 usage; 3 model or data unreadable, "
        "untrusted or corrupt; 4 model not supported; 5 out of resources, or broken (doctor); 6 numeric failure, or an "
        "export that differs; 70 internal; 129/130/143 interrupted; 141 the reader of stdout left."
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

#: commands as ``alphatune --help`` shows them
COMMANDS = {
    "Tune": (tune, train, evaluate),
    "Results": (report, compare, export, schema),
    "Look and check": (inspect, bench, doctor, demo),
    "The paper": (study,),
}
for _panel, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(cls=Command, rich_help_panel=_panel)(_command)


#: what a shell says of a program that SIGPIPE ended
READER_LEFT = 128 + 13
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"alphatune {VERSION}")
        raise typer.Exit()


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> None:
    """Entry point: run the command line, and make of whatever it raises its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    keep_freed_memory()
    spin_briefly()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # an α must not fail where the encoding has none
            stream.reconfigure(errors="backslashreplace")
    stdout = sys.stdout
    try:
        for word in argv:
            require_utf8(word)
        with signals_raised(_is_verbose(argv), heard=_say_stopping, end=partial(_end_now, argv)):
            code = app(args=argv, prog_name="alphatune", standalone_mode=False)
            if sys.stdout is not None:  # closed by the caller
                sys.stdout.flush()  # here, where an error can still be told
    except AlphatuneError as error:
        _fail(argv, error.exit_code, error.message, error.hint)
    except typer.TyperException as error:
        if not argv:  # typer has shown the help
            sys.exit(2)
        _fail(argv, 2, *explain(error))
    except (KeyboardInterrupt, typer.Abort, Terminated) as signalled:
        with signals_ignored():
            _fail(argv, *_interrupted(type(signalled)), _going_on(argv))
    except SystemExit as stop:
        # Typer, or rich, saw that the reader left, and would say 1.
        if sys.stdout is not stdout or isinstance(stop.__context__, BrokenPipeError):
            _leave_stdout()
            sys.exit(READER_LEFT)
        if _asks_for_completion(argv):
            raise
        _fail(argv, 70, f"internal error: SystemExit: {stop.code}")
    except BrokenPipeError:
        _leave_stdout()
        sys.exit(READER_LEFT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            _fail(argv, 5, f"cannot write: {one_line(error)}")
        if failure := machine_failure(error):
            _fail(argv, failure.exit_code, failure.message, failure.hint)
        if _is_verbose(argv):
            traceback.print_exc()
        _fail(
            argv, 70, f"internal error: {type(error).__name__}: {one_line(error)}", "-v shows the traceback"
        )
    if code == 130:  # typer's own translation of a KeyboardInterrupt that no signal raised
        _fail(argv, 130, "interrupted")
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted(signalled: type[BaseException]) -> tuple[int, str]:
    """Exit code and message of a command that a signal ended."""
    if issubclass(signalled, Terminated):
        return 128 + signalled.number, "the terminal is gone" if issubclass(
            signalled, HungUp
        ) else "terminated"
    return 130, "interrupted"


def _going_on(argv: list[str]) -> str:
    """How to go on with a command that was interrupted, if it can be."""
    can = argv[:1] in (["train"], ["tune"]) and not any(word.startswith("--score") for word in argv)
    instead = " in place of `overwrite`" if argv[:1] == ["train"] and "--overwrite" in argv else ""
    if not can:
        return ""
    if not is_something_saved():
        return "nothing was saved yet to go on from"
    return f"the same command with `resume`{instead} goes on from what was saved"


def _say_stopping() -> None:
    if shown := sys.modules.get("alphatune.cli.progress_bar"):
        shown.say_stopping()


def _end_now(argv: list[str], signalled: type[BaseException]) -> None:
    """End as after an interruption, wherever the command is: what it writes gets its name when it is whole."""
    code, message = _interrupted(signalled)
    try:
        if shown := sys.modules.get("alphatune.cli.progress_bar"):
            shown.clear_screen()
        with signals_ignored():
            _fail(argv, code, message, _going_on(argv))
    finally:
        os._exit(code)


def _asks_for_completion(argv: list[str]) -> bool:
    """Whether typer answers a shell, and leaves when it has; no command is run then."""
    return "_ALPHATUNE_COMPLETE" in os.environ or bool(
        {"--install-completion", "--show-completion"} & set(argv[:1])
    )


def _fail(argv: list[str], code: int, message: str, hint: str = "") -> None:
    """One line on stderr, or one JSON object on stdout; then exit."""
    from alphatune.results.failure import Failure, FailureDocument
    from alphatune.results.serialisation import to_json

    commands = getattr(typer.main.get_command(app), "commands", {})
    command = next(iter(argv), "")
    message, hint = as_options(message), name_owners(as_options(hint), command, commands)
    message, hint = one_line(message, 1000), one_line(hint, 1000)
    if _wants_json(argv) and os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks
        with contextlib.suppress(OSError):  # a full disk may be what there is to tell
            failure = FailureDocument(error=Failure(code=code, message=message, hint=hint))
            print(to_json(failure, for_pipe=True), flush=True)
    _leave_stdout()
    said = message + (f" ({hint})" if hint else "")
    tell(f"error: {said}")
    if command == "tune" and os.environ.get("GITHUB_STEP_SUMMARY") and os.environ.get("RANK", "0") == "0":
        from alphatune.reports.step_summary import append_failure

        append_failure(code, said)
    _end_workers()
    sys.exit(code)


def _end_workers() -> None:
    """End the processes that read images, should an error have left them waiting for work.

    They ignore SIGTERM, with which Python would end them at its exit and then wait.
    """
    if "multiprocessing" not in sys.modules or not hasattr(signal, "SIGCHLD"):
        return
    import multiprocessing

    workers = [child for child in multiprocessing.active_children() if child.daemon]
    # torch's handler would raise an error of its own
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) or signal.SIG_DFL
    try:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(timeout=5)
    finally:
        signal.signal(signal.SIGCHLD, before)


def _leave_stdout() -> None:
    """Spare the interpreter a last attempt to write what cannot be written, which has an exit code of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _is_verbose(argv: list[str]) -> bool:
    return bool({"-v", "--verbose"} & set(argv))


def _wants_json(argv: list[str]) -> bool:
    """Whether stdout is to be JSON; export, whose --format is that of the file, says so by --stdout."""
    options = ("--format", "--stdout")
    return any(f"{option}=json" in argv for option in options) or any(
        option in options and value == "json" for option, value in pairwise(argv)
    )
