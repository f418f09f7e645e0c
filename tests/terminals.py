"""Runs of the command on a terminal of so many columns, and what a person sees there."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path

import pyte
from forks import FORKS, command_on, environment_now, take_environment

#: seconds after which a run has hung
LIMIT = 120


@dataclass
class Seen:
    """What a run showed."""

    screens: list[list[str]] = field(default_factory=list)  # whenever something changed, without empty lines
    code: int | None = None
    said: float = 0.0  # seconds from the signal to the answer, and to the end
    ended: float = 0.0

    @property
    def lines(self) -> list[str]:
        """All lines that were seen, each once."""
        return list(dict.fromkeys(line for screen in self.screens for line in screen))


def on_terminal(argv: Sequence[object], columns: int, *, interrupt_at: str = "", rows: int = 30) -> Seen:
    """Run a command; SIGINT comes when a line on the screen has what a regular expression looks for."""
    seen, screen = Seen(), pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    words = [str(word) for word in argv]
    process = FORKS.Process(target=_on, args=(words, os.ttyname(theirs), environment_now()))
    process.start()
    began, signalled = time.monotonic(), 0.0
    try:
        while time.monotonic() - began < LIMIT:
            alive = process.is_alive()
            if select.select([ours], [], [], 0.02)[0]:
                # Where this process had to wait, several drawings come at once: each is a screen that was to be seen.
                for drawing in re.split(rb"(?=\r\x1b\[2K)", os.read(ours, 2**16)):
                    stream.feed(drawing)
                    shown = [line.rstrip() for line in screen.display if line.strip()]
                    if not seen.screens or shown != seen.screens[-1]:
                        seen.screens.append(shown)
                if signalled and not seen.said and "Stopping" in "".join(shown):
                    seen.said = time.monotonic() - signalled
                if interrupt_at and not signalled and any(re.search(interrupt_at, line) for line in shown):
                    signalled = time.monotonic()
                    os.kill(int(process.pid or 0), signal.SIGINT)
            elif not alive:
                break
        process.join(1)
        seen.code, seen.ended = process.exitcode, time.monotonic() - signalled
        return seen
    finally:
        process.kill()
        for number in (ours, theirs):
            with suppress(OSError):
                os.close(number)


def _on(argv: list[str], terminal: str, environment: dict[str, str]) -> None:
    os.setsid()
    number = os.open(terminal, os.O_RDWR)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    take_environment(environment | {"TERM": "xterm", "PYTHONUNBUFFERED": "1"})
    for name in ("COLUMNS", "LINES", "NO_COLOR", "RANK"):
        os.environ.pop(name, None)
    command_on(argv, (number, number, number))


def write_slow_network(folder: Path, seconds: float = 0.01) -> str:
    """A network that takes its time; the name by which the command finds it."""
    (folder / "slow.py").write_text(
        f"""
import time
import torch

class Slow(torch.nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, num_classes)

    def forward(self, x):
        time.sleep({seconds})
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
"""
    )
    return f"{folder / 'slow.py'}:Slow"
