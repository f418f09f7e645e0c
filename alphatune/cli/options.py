"""Commands from settings: their options, what a run.toml may give, and the options of the terminal itself.

Importing this imports neither torch nor timm.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import typer

from alphatune.cli.help import EVERYTHING
from alphatune.cli.stderr import tell
from alphatune.cli.usage import require_utf8
from alphatune.core.errors import ConfigurationError
from alphatune.core.suggestions import did_you_mean
from alphatune.core.toml import tomllib
from alphatune.settings import KINDS, ModelSettings
from alphatune.settings.conditions import split_clean
from alphatune.settings.model import DEVICE
from alphatune.settings.option import OUTPUT, RUNNING, Declared, Option, declared

#: by command
_NAMES = {command: {each.name for each in declared(kind)} for command, kind in KINDS.items()}
#: whose run.toml a command reads as well, passing over what it cannot take
_ALSO_READ = {"evaluate": ("tune",), "inspect": ("tune", "evaluate")}
#: what libraries that download and convert look at when they are imported
NO_BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
_PASSED_OVER = "alphatune.passed_over"  # of a configuration, in the context

Command = Callable[..., None]


def takes(kind: type[ModelSettings]) -> Callable[[Command], Command]:
    """Make a command of a function of the settings: every setting is an option.

    Further parameters of the function are options as typer reads them, after those of the settings.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(ctx: typer.Context, **given: Any) -> None:
            settings = _settings(ctx, kind)
            if given.get("verbose") and os.environ.get("RANK", "0") == "0":  # one process speaks
                tell(f"settings: {settings}")
            function(settings, **{name: given[name] for name in own})

        # Not typing.get_type_hints, which adds an Optional before Python 3.11, and loses the metadata with it.
        signature = inspect.signature(function, eval_str=True)
        own = {name: each for name, each in signature.parameters.items() if name != "settings"}
        shared = {each.option.given_by for each in declared(kind)}
        parameters = [_parameter("ctx", typer.Context)]
        parameters += [_typer_parameter(each, repeated=each.name in shared) for each in declared(kind)]
        parameters += [_parameter(name, each.annotation, each.default) for name, each in own.items()]
        parameters.append(_parameter("help_all", HelpAll, False))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        del command.__wrapped__  # whose signature typer would read
        return command

    return decorate


def _typer_parameter(each: Declared, *, repeated: bool = False) -> inspect.Parameter:
    """A setting as a parameter that typer reads; where we keep a tuple, typer gives a list.

    Args:
        repeated: whether its option may be given several times for one value, as it holds another setting's, too.
    """
    type_, default = each.type, inspect.Parameter.empty if each.default is MISSING else each.default
    if get_origin(type_) is tuple:
        type_, default = list[str] | None, None
    elif repeated:
        type_ = list[str]
    return _parameter(each.name, Annotated[type_, typer_option(each.option, each.name)], default)


def typer_option(option: Option, name: str) -> Any:
    """An option of ``alphatune.settings`` as typer's."""
    help_ = option.help.replace("[", "\\[")  # which is rich's markup
    if name == "model":
        return typer.Argument(metavar=option.metavar, help=help_, show_default=False)
    long = f"--{name.replace('_', '-')}"
    if option.can_be_negated:
        long += f"/--no-{name.replace('_', '-')}"
    return typer.Option(
        *filter(None, (long, option.short)),
        metavar=option.metavar,
        help=help_,
        rich_help_panel=option.group,
        min=option.minimum,
        max=option.maximum,
        show_default=option.show_default,
        hidden=option.given_by is not None,
        autocompletion=_completing(option.suggestions) if option.suggestions else None,
    )


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _completing(values: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def _settings(ctx: typer.Context, kind: type[ModelSettings]) -> ModelSettings:
    """The settings of a job from the parsed options of the same names."""
    if ctx.params.get("quiet") or not (sys.stderr and sys.stderr.isatty()):
        for name in NO_BARS:
            os.environ.setdefault(name, "1")
    quiet = ctx.params.get("quiet")
    logging.getLogger("alphatune").setLevel(logging.ERROR if quiet else logging.WARNING)
    if quiet:
        os.environ.setdefault("WANDB_SILENT", "true")
    if (passed_over := ctx.meta.get(_PASSED_OVER)) and not ctx.params.get("quiet"):
        tell(f"warning: {passed_over}")
    with contextlib.suppress(FileNotFoundError):
        require_utf8(str(Path.cwd()))  # paths are written as they hold from anywhere
    given = {each.name: ctx.params[each.name] for each in declared(kind)}
    if "conditions" in given and given["data"]:
        given["data"], others = split_clean(given["data"])
        given["conditions"] = others or given["conditions"]
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return kind(**{k: v for k, v in values.items() if v is not None})


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a run.toml the defaults of the options that were not given."""
    if path is None:
        return None
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read --config {path}: {error}") from None
    command = ctx.info_name or ""
    wider = _NAMES[command].union(*(_NAMES[other] for other in _ALSO_READ.get(command, ())))
    for name in sorted(values.keys() - wider):
        owners = [other for other, names in _NAMES.items() if name in names]
        if owners:
            raise ConfigurationError(
                f"{path} sets {name!r}, which is an option of {', '.join(owners)}, not of {command}"
            )
        raise ConfigurationError(
            f"{path} sets {name!r}, which is no option", did_you_mean(name, _NAMES[command])
        )
    if foreign := sorted(values.keys() - _NAMES[command]):
        ctx.meta[_PASSED_OVER] = f"options of other commands in {path} were passed over: {', '.join(foreign)}"
    options = declared(KINDS[command])
    saved = {each.name for each in options if each.option.saved}
    for name in values.keys() & {each.option.given_by for each in options}:
        values[name] = [values[name]]  # as its option, which may be repeated, takes it
    ctx.default_map = {**(ctx.default_map or {}), **{k: v for k, v in values.items() if k in saved}}
    return path


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:  # which is how a shell completes
        ctx.meta[EVERYTHING] = True
        print(ctx.get_help())
        raise typer.Exit()


# --- options of the terminal, which are no settings of a job -----------------------------------

Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        is_eager=True,
        callback=_read_config,
        help="Defaults from a run.toml; options given here win.",
        rich_help_panel=RUNNING,
    ),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        "--dry-run",
        help="Open and check everything, show the plan and stop.",
        rich_help_panel=RUNNING,
    ),
]
Format = Annotated[
    Literal["human", "json", "quiet"],
    typer.Option(help="stdout: a table, JSON, or one line.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Nothing but errors on stderr.", rich_help_panel=OUTPUT)
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="More on stderr; tracebacks of bugs.", rich_help_panel=OUTPUT),
]
HelpAll = Annotated[
    bool,
    typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show every option and exit."),
]
#: for commands that have no settings of their own
Device = Annotated[str, typer_option(DEVICE, "device")]
