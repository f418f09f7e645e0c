"""A job as experiment trackers see it: begun when work starts, ended however it ends.

A tracker never fails a job, and a server that is down is not waited for: what
could not be sent is tried once more at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from alphatune.core.errors import ConfigurationError, one_line
from alphatune.core.extras import install_line
from alphatune.core.suggestions import did_you_mean
from alphatune.jobs.trackers import TRACKERS, Job, Outcome, Summary, Tracker
from alphatune.reports.summary import summarise_tune
from alphatune.results.alpha import alpha_text
from alphatune.results.training import Epoch, TrainDocument
from alphatune.results.tune import Tuned
from alphatune.settings import TrainSettings, TuneSettings

#: which run of each tracker a job is, so that a resumed job goes on with it
RUN_IDS = "tracking.json"
#: of what a job writes, what goes to a tracker where it takes files
_FILES = ("result.json", "report.html", "report.md", "curve.csv", "log.csv", "curves.png")
#: seconds after a failure from which a second attempt at the end is worth the wait
_AGAIN = 60.0
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")
_Send = Callable[[Tracker], None]


def check_trackers(names: Iterable[str]) -> None:
    """Refuse a tracker that is unknown, or whose package is not installed.

    Raises:
        ConfigurationError: says how to install it.
    """
    for name in names:
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS) or f"one of: {', '.join(TRACKERS)}"
            raise ConfigurationError(f"`log_to` takes no {name!r}", hint)
        if importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                f"`log_to={name}` needs the package {name}, which is not installed",
                install_line(name),
            )


@contextmanager
def tracked(command: str, settings: TrainSettings | TuneSettings) -> Iterator[Tracking]:
    """A job to log to the trackers that its settings name; nothing is sent before it begins.

    Raises:
        ConfigurationError: as ``check_trackers`` does.
    """
    check_trackers(settings.log_to)
    tracking = Tracking(command, settings)
    try:
        yield tracking
    except BaseException as error:
        outcome: Outcome = "failed" if isinstance(error, Exception) else "interrupted"
        tracking.end(outcome, f"{outcome}: {one_line(error) or type(error).__name__}")
        raise
    tracking.end("finished")


class Tracking:
    """What a job tells its trackers."""

    def __init__(self, command: str, settings: TrainSettings | TuneSettings) -> None:
        values = {name: value for name, value in asdict(settings).items() if value not in (None, ())}
        model = re.split(r"[/\\]", settings.model)[-1]
        self._job = Job(command, f"{command} {model}", values, Path(settings.output))
        self._names = tuple(dict.fromkeys(settings.log_to))
        self._sinks: tuple[_Sink, ...] = ()
        self._summary: Summary = {}
        self._files: tuple[Path, ...] = ()

    def begin(self, run_ids: Path | None = None, step: int = 0) -> None:
        """Say that work starts, or goes on; in one process only.

        Args:
            run_ids: the file that says which runs of the trackers this is. It is written if it is not there.
            step: where a resumed run goes on.
        """
        self._sinks = tuple(_Sink(name, replace(self._job, step=step), run_ids) for name in self._names)
        for sink in self._sinks:
            sink.send()

    def epoch(self, row: Epoch) -> None:
        """Log an epoch of a training run."""
        named = {re.sub("^(train|val)_", r"\1/", name): float(value) for name, value in row.items()}
        for sink in self._sinks:
            sink.send(lambda tracker: tracker.log(named, row.step))

    def trained(self, document: TrainDocument) -> None:
        """Log what a training run came to."""
        summary: dict[str, float | str] = {"seconds": document.seconds}
        for part in ("validation", "test"):
            if metrics := document[part]:
                summary |= {f"{part}/{name}": float(value) for name, value in metrics.items()}
        self._found(summary)

    def tuned(self, document: Tuned) -> None:
        """Log what a tune came to; it begins here if its result was known before."""
        if not self._sinks:
            self.begin()
        for point in document.curve:
            values = {f"curve/{k}": float(v) for k, v in point.items() if k not in ("measured", "n", "ci")}
            for sink in self._sinks:  # trackers count steps in whole numbers
                sink.send(lambda tracker, v=values, a=point.alpha: tracker.log(v, round(1e4 * a)))  # type: ignore[misc]
        self._found(_tune_summary(document))

    def end(self, outcome: Outcome, status: str = "") -> None:
        """Tell how the job ended, in words as well, and what it found."""
        summary, files = {"status": status or outcome, **self._summary}, self._files
        for sink in self._sinks:
            sink.send(lambda tracker: tracker.end(outcome, summary, files), last=True)
        self._sinks = ()

    def _found(self, summary: Summary) -> None:
        paths = [self._job.output / name for name in _FILES]
        self._summary, self._files = summary, tuple(path for path in paths if path.is_file())


class _Sink:
    """One tracker, which may fail: the job goes on, and at its end what waits is tried once more."""

    def __init__(self, name: str, job: Job, run_ids: Path | None) -> None:
        self._name, self._job, self._run_ids = name, job, run_ids
        self._tracker: Tracker | None = None
        self._waiting: list[_Send] = []
        self._failed_at: float | None = None

    def send(self, *what: _Send, last: bool = False) -> None:
        self._waiting += what
        if self._failed_at is not None and (not last or time.monotonic() - self._failed_at < _AGAIN):
            return
        try:
            if self._tracker is None:
                self._tracker = self._opened()
            while self._waiting:
                self._waiting[0](self._tracker)
                del self._waiting[0]
        except Exception as error:  # of a library, a network or a server
            if self._failed_at is None:
                reason = _CREDENTIALS.sub("", f"{type(error).__name__}: {one_line(error, 200)}")
                message = f"warning: logging to {self._name} failed: {reason}; the job goes on without it"
                logging.getLogger("alphatune").warning("%s", message)
            self._failed_at = time.monotonic()

    def _opened(self) -> Tracker:
        known: dict[str, str] = {}
        if self._run_ids:
            with contextlib.suppress(OSError, ValueError):
                known = json.loads(self._run_ids.read_text(encoding="utf-8"))
        tracker = TRACKERS[self._name](replace(self._job, run_id=str(known.get(self._name, ""))))
        if self._run_ids and tracker.run_id:
            with contextlib.suppress(OSError):  # then a resumed job is another run
                text = json.dumps({**known, self._name: tracker.run_id})
                self._run_ids.write_text(text, encoding="utf-8")
        return tracker


def _tune_summary(document: Tuned) -> Summary:
    """Decision, metrics before and after, gain, gates."""
    chosen, gain, found = document.chosen, document.gain, summarise_tune(document)
    summary: dict[str, float | str] = {
        "decision": f"{found.decision}. {found.sentence}",
        "alpha": alpha_text(chosen.alpha) if isinstance(chosen.alpha, dict) else chosen.alpha,
        "temperature": chosen.temperature,
        "seconds": document.seconds,
    }
    for part, metrics in (("before", document.baseline), ("after", chosen.metrics)):
        summary |= {f"{part}/{name}": float(value) for name, value in metrics.items()}
    if gain:
        low, high = gain.ci
        summary |= {
            "gain/metric": gain.metric,
            "gain/estimate": gain.delta,
            "gain/low": low,
            "gain/high": high,
        }
        summary |= {"gain/p": gain.p, "gain/significant": float(gain.significant)}
    if document.gates:
        failed = [gate.name for gate in document.gates if not gate.passed]
        summary["gates"] = f"failed: {', '.join(failed)}" if failed else "passed"
    return summary
