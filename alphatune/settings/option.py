"""What a field of the settings says about itself, beside its type and default."""

import os
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from alphatune.core.errors import ConfigurationError, one_line

MODEL, DATA, PREPROCESSING, RUNNING, OUTPUT = "Model", "Data", "Preprocessing", "Running", "Output"
TUNING, AVERAGES, GATES = "Tuning", "Moving averages", "Gates (exit code 1 if one fails)"
NORMALISATION, OPTIMISATION, FILE, CHECK = "Normalisation", "Optimisation", "File", "Check"
#: in the order in which help shows them
GROUPS = (
    FILE, MODEL, DATA, PREPROCESSING, NORMALISATION, OPTIMISATION, TUNING, AVERAGES, CHECK, RUNNING, GATES, OUTPUT,
)  # fmt: skip

MAX_SEED = 2**32 - 1
#: for ``applies_to``: without a score of the user's own
IMAGES = ("images",)


@dataclass(frozen=True, kw_only=True)
class Option:
    """Metadata of a setting, given as ``Annotated[type, Option(...)]``.

    Args:
        help: one sentence.
        group: one of ``GROUPS``.
        metavar: what stands for the value in help, where its type does not say it.
        short: the option's second name, such as ``-o``.
        minimum: the least number allowed.
        maximum: the largest number allowed.
        suggestions: values that a shell may complete.
        show_default: whether help names the default.
        can_be_negated: whether a switch has a ``--no-`` form.
        common: whether ``--help`` shows it; ``--help-all`` shows every option.
        affects_result: whether another value may give another result. If not, it is no part of a cache key, a run
            that is resumed may change it, and the report's command leaves it out.
        saved: whether run.toml holds it and may set it. Consent is not saved: the file may be a stranger's.
        applies_to: the kinds of job that it means something to; none: all.
        before: what runs did before there was this setting, where that is not its default.
        given_by: the setting whose option holds the values of this one, too, which has none of its own then.
    """

    help: str
    group: str
    metavar: str | None = None
    short: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    suggestions: tuple[str, ...] = ()
    show_default: bool = True
    can_be_negated: bool = False
    common: bool = False
    affects_result: bool = True
    saved: bool = True
    applies_to: tuple[str, ...] = ()
    before: Any = None
    given_by: str | None = None

    def but(self, **changes: Any) -> "Option":
        """The same, but for some of it."""
        return replace(self, **changes)


class Declared(NamedTuple):
    """A setting as it is declared."""

    name: str
    type: Any
    default: Any  # dataclasses.MISSING where there is none
    option: Option


def declared(kind: type) -> tuple[Declared, ...]:
    """The settings of a job that are options of its command, by group."""
    hints, omitted = get_type_hints(kind, include_extras=True), getattr(kind, "OMITTED", ())
    found = []
    for field in fields(kind):
        type_, *metadata = get_args(hints[field.name])
        options = [each for each in metadata if isinstance(each, Option)]
        if options and field.name not in omitted:
            found.append(Declared(field.name, type_, field.default, options[0]))
    return tuple(sorted(found, key=lambda each: GROUPS.index(each.option.group)))


def check_values(settings: object) -> None:
    """Check the settings against their declarations, as the command line does.

    A path or a number may be given for text, and a list for a tuple.

    Raises:
        ConfigurationError: another type, none of the choices, or a number out of range; names the setting.
    """
    import msgspec  # not needed for --help

    for name, type_, _, option in declared(type(settings)):
        given = getattr(settings, name)
        value = os.fspath(given) if isinstance(given, os.PathLike) else given
        if str in (type_, *get_args(type_)) and type(value) in (int, float):  # as it would be typed
            value = str(value)
        try:
            value = msgspec.convert(value, type_)
        except msgspec.ValidationError:
            raise ConfigurationError(
                f"`{name}` takes {_in_words(type_)}, got {one_line(repr(given), 80)}"
            ) from None
        low, high = option.minimum, option.maximum
        if isinstance(value, int | float) and (
            (low is not None and value < low) or (high is not None and value > high)
        ):
            allowed = (
                f"from {low}" if high is None else f"up to {high}" if low is None else f"from {low} to {high}"
            )
            raise ConfigurationError(f"`{name}` takes a number {allowed}, got {value}")
        if value is not given:
            object.__setattr__(settings, name, value)


def _in_words(type_: Any) -> str:
    """What a setting takes."""
    if get_origin(type_) is Literal:
        return f"one of {', '.join(map(str, get_args(type_)))}"
    if get_origin(type_) is tuple:
        return "a list of texts"
    kinds = {str: "a text", int: "a whole number", float: "a number", bool: "True or False", NoneType: "None"}
    return " or ".join(kinds.get(each) or _in_words(each) for each in get_args(type_) or (type_,))


def without_effect(kind: type) -> frozenset[str]:
    """Names of the settings that change no result."""
    return frozenset(each.name for each in declared(kind) if not each.option.affects_result)


def check_applies(settings: object, jobs: frozenset[str], against: str, hint: str = "") -> None:
    """Refuse settings that mean nothing to this kind of job.

    Args:
        jobs: members of ``Option.applies_to`` that this one is.
        against: what they do not go with, for the message.
        hint: what to say beside it; without it, what the setting is for.

    Raises:
        ConfigurationError: names the setting.
    """
    for name, _, default, option in declared(type(settings)):
        means_nothing = option.applies_to and jobs.isdisjoint(option.applies_to)
        if means_nothing and getattr(settings, name) != default:
            raise ConfigurationError(
                f"`{name}` does not go with {against}", hint or f"it is for {' and '.join(option.applies_to)}"
            )
