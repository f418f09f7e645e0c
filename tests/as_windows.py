"""Run commands of alphatune in a process that lacks what Windows lacks: ``as_windows.py '["train", ...]' '["tune", ...]'``.

It is no Windows, but what is used all the same of signals, locks, owners and the syncing of folders is an error.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import alphatune.cli.main
from alphatune.core import folder_lock, system

for _name in (
    "geteuid",
    "getuid",
    "sched_getaffinity",
    "sysconf",
    "posix_fallocate",
    "fork",
):
    delattr(os, _name)
for _name in ("SIGHUP", "SIGALRM", "SIGCHLD", "SIGPIPE", "setitimer", "ITIMER_REAL"):
    delattr(signal, _name)
for _name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[_name] = None  # type: ignore[assignment]
system.WINDOWS = folder_lock.WINDOWS = True
shutil._use_fd_functions = False  # type: ignore[attr-defined]
_open, _fsync, _for_writing = os.open, os.fsync, set()


def open_file(path, flags, *rest, **more):
    if Path(path).is_dir():
        raise PermissionError(errno.EACCES, "a folder cannot be opened", path)
    descriptor = _open(path, flags, *rest, **more)
    (_for_writing.add if flags & (os.O_RDWR | os.O_WRONLY) else _for_writing.discard)(descriptor)
    return descriptor


def fsync(descriptor):
    if descriptor not in _for_writing:
        raise OSError(errno.EBADF, "not opened for writing")
    _fsync(descriptor)


os.open, os.fsync = open_file, fsync

if __name__ == "__main__":
    for command in sys.argv[1:]:
        try:
            alphatune.cli.main.main(json.loads(command))
        except SystemExit as stop:
            print(json.loads(command)[0], stop.code, flush=True)
