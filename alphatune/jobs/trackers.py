"""TensorBoard, Weights & Biases and MLflow, each behind the same three calls; imported only where a job logs to it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Outcome = Literal["finished", "failed", "interrupted"]
Summary = Mapping[str, "float | str"]
#: the project of Weights & Biases, and the experiment of MLflow, where the environment names none
PROJECT = "alphatune"
FOLDER = "tensorboard"
#: seconds that a server has to answer at the beginning, and to take the rest at the end
_BEGIN, _END = 30, 60


@dataclass(frozen=True)
class Job:
    """What is known of a job when it begins.

    Args:
        command: train or tune.
        name: of the run.
        settings: by name, plain values.
        output: the folder that the job writes.
        step: where a run that is resumed goes on.
        run_id: of the run that is resumed; "" for a new one.
    """

    command: str
    name: str
    settings: Mapping[str, Any]
    output: Path
    step: int = 0
    run_id: str = ""


class Tracker(Protocol):
    """One run of one tool."""

    run_id: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the curves. The values hold what a curve is drawn over (epoch, alpha) as well."""

    def end(self, outcome: Outcome, summary: Summary, files: Sequence[Path]) -> None:
        """Say how it ended, and what it found."""


class TensorBoard:
    """Event files in the output folder, from the first value on: a tune makes its folder only in the end."""

    run_id = ""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._writer: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        writer = self._open()
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def end(self, outcome: Outcome, summary: Summary, files: Sequence[Path]) -> None:
        if outcome == "finished" or self._writer is not None:
            writer = self._open()
            for name, value in summary.items():
                if isinstance(value, str):
                    writer.add_text(f"result/{name}", value)
                else:
                    writer.add_scalar(f"result/{name}", value)
            if files:
                writer.add_text("result/files", "\n\n".join(map(str, files)))
            writer.close()

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted run wrote after its last checkpoint comes again.
            self._writer = SummaryWriter(self._job.output / FOLDER, purge_step=self._job.step + 1)
            rows = [f"| {name} | {value} |" for name, value in self._job.settings.items()]
            self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
        return self._writer


class WeightsAndBiases:
    """A run of wandb, which reads WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and the rest of its variables."""

    def __init__(self, job: Job) -> None:
        import wandb

        wished = {"console": "off", "init_timeout": _BEGIN, "finish_timeout": _END}
        known = {name: value for name, value in wished.items() if name in wandb.Settings.model_fields}
        self._wandb, self._command = wandb, job.command
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or job.name,
            job_type=job.command,
            config=dict(job.settings),
            id=job.run_id or None,
            resume="allow" if job.run_id else None,
            settings=wandb.Settings(**known),
        )
        self.run_id: str = self._run.id
        for curves in ("train/*", "val/*", "learning_rate", "seconds"):
            self._run.define_metric(curves, step_metric="step")
        self._run.define_metric("curve/*", step_metric="curve/alpha")

    def log(self, values: Mapping[str, float], _step: int) -> None:
        self._run.log(dict(values))  # which hold their own axis

    def end(self, outcome: Outcome, summary: Summary, files: Sequence[Path]) -> None:
        self._run.summary.update(dict(summary))
        if files:
            artifact = self._wandb.Artifact(f"{self._command}-{self.run_id}", type="result")
            for file in files:
                artifact.add_file(str(file))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if outcome == "finished" else 1)


class MLflow:
    """A run of MLflow, by its client: nothing is active in the process, or printed.

    It reads MLFLOW_TRACKING_URI and the rest of MLflow's variables.
    """

    def __init__(self, job: Job) -> None:
        # MLflow would try for four minutes, with the job waiting.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_BEGIN))
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow import MlflowClient

        self._client = MlflowClient()
        if job.run_id:
            self.run_id = job.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            return
        tags = {"mlflow.source.name": f"alphatune {job.command}", "mlflow.source.type": "LOCAL"}
        run = self._client.create_run(self._experiment(), tags=tags, run_name=job.name)
        self.run_id = run.info.run_id
        for name, value in job.settings.items():
            self._client.log_param(self.run_id, name, str(value)[:500])

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def end(self, outcome: Outcome, summary: Summary, files: Sequence[Path]) -> None:
        for name, value in summary.items():
            if isinstance(value, str):
                self._client.set_tag(self.run_id, name, value)
            else:
                self._client.log_metric(self.run_id, name, value)
        for file in files:
            self._client.log_artifact(self.run_id, str(file))
        status = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[outcome]
        self._client.set_terminated(self.run_id, status)

    def _experiment(self) -> str:
        if named := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return named
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))


#: by the name that `log_to` takes, which is that of the package and of the extra
TRACKERS: dict[str, type[TensorBoard | WeightsAndBiases | MLflow]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
