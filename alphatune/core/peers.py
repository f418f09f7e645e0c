"""The other processes of a run: meeting them, and noticing when one of them is gone.

``torch.distributed`` waits for its peers in C++, where neither Ctrl-C nor SIGTERM gets through, for
half an hour and longer. So processes meet here first, and the first keeps a connection to each
of the others. The kernel closes that of a process that was killed; one that ends in good order says so.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from alphatune.core.errors import ConfigurationError, ResourceError, one_line

if TYPE_CHECKING:
    import torch.distributed as dist

log = logging.getLogger(__name__)

#: seconds until the wait is spoken of, and until it is given up
PATIENCE, LONGEST_WAIT = 5.0, 300.0
#: seconds that a process has for an ending of its own when another is gone, and until it is ended wherever it is
GRACE, LAST = 1.0, 20.0
_FAREWELL = b"."


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and where the first one listens."""

    rank: int
    size: int
    host: str
    port: int


def place_of_process(environ: Mapping[str, str] = os.environ) -> Place | None:
    """What torchrun's environment variables say; None for a process of its own.

    Raises:
        ConfigurationError: WORLD_SIZE asks for several processes, and the others do not say which and where.
    """
    if "WORLD_SIZE" not in environ:
        return None
    size = _number(environ, "WORLD_SIZE", 1)
    if size == 1:
        return None
    rank = _number(environ, "RANK", 0)
    if rank >= size:
        raise ConfigurationError(f"RANK is {rank} of {size} processes, which count from 0", _HOW)
    if not environ.get("MASTER_ADDR"):
        raise ConfigurationError(f"WORLD_SIZE is {size}, and MASTER_ADDR is not set", _HOW)
    return Place(rank, size, environ["MASTER_ADDR"], _number(environ, "MASTER_PORT", 1))


_HOW = "torchrun sets WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT; for one process, unset WORLD_SIZE"


def _number(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ.get(name)
    if text is None:
        raise ConfigurationError(f"WORLD_SIZE is {environ['WORLD_SIZE']}, and {name} is not set", _HOW)
    if not text.strip().isdecimal() or int(text) < least:
        raise ConfigurationError(f"{name} must be a whole number from {least}, got {text!r}", _HOW)
    return int(text)


def meet(place: Place) -> dist.Store:  # type: ignore[name-defined, unused-ignore]
    """A store that all processes share, when all of them are there.

    Raises:
        ConfigurationError: somebody did not come, or the address cannot be listened on.
        ResourceError: the process that keeps the store is gone.
    """
    import torch.distributed as dist

    began = _Waiting(f"at {place.host}:{place.port} (WORLD_SIZE is {place.size})")
    # torchrun's own process keeps the store for those that it starts
    keeps = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while not keeps:
        try:
            socket.create_connection((place.host, place.port), 1).close()
            break
        except OSError as error:
            began.wait([0], error)
    try:
        tcp = dist.TCPStore(  # type: ignore[attr-defined, unused-ignore]
            place.host, place.port, place.size, keeps, timeout=timedelta(seconds=30), wait_for_workers=False
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"alphatune/{attempt}", tcp)  # type: ignore[attr-defined, unused-ignore]
        store.set(f"rank{place.rank}", "here")
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot meet at {place.host}:{place.port}: {one_line(error)}", _HOW
        ) from None
    while True:
        try:
            absent = [rank for rank in range(place.size) if not store.check([f"rank{rank}"])]
        except RuntimeError as error:
            raise ResourceError(f"process 0 of {place.size} is gone: {one_line(error)}") from None
        if not absent:
            return store
        began.wait(absent)


class _Waiting:
    """A wait that says whom it is for, once, and ends."""

    def __init__(self, where: str) -> None:
        self._where, self._began, self._said = where, time.monotonic(), False

    def wait(self, ranks: list[int], error: Exception | None = None) -> None:
        time.sleep(0.1)
        waited = time.monotonic() - self._began
        whom = f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} {self._where}"
        if waited > LONGEST_WAIT:
            reason = f": {one_line(error)}" if error else ""
            raise ConfigurationError(f"waited {waited:.0f} s for {whom}, in vain{reason}", _HOW)
        if waited > PATIENCE and not self._said:
            self._said = True
            log.warning("waiting for %s", whom)


class Watch:
    """Interrupts this process when another of the run is gone."""

    def __init__(self, place: Place, store: dist.Store) -> None:  # type: ignore[name-defined, unused-ignore]
        self._place = place
        self._lost = threading.Event()
        self._left = threading.Event()
        self._who = 0
        self._peers = selectors.DefaultSelector()
        try:
            self._connect(store)
        except OSError as error:  # a firewall; torch finds out later, by itself
            log.debug("processes are not watched: %s", error)
        threading.Thread(target=self._watch, name="alphatune-peers", daemon=True).start()

    def lost(self, seconds: float) -> ResourceError | None:
        """The error that another process is gone, if it is, or turns out to be within some seconds."""
        if not self._lost.wait(seconds):
            return None
        return ResourceError(
            f"process {self._who} of {self._place.size} ended, and the others cannot go on without it",
            "its own output says why, unless it was killed (memory?); tune and train go on with `resume`",
        )

    def leave(self, *, in_order: bool) -> None:
        """Stop watching; the others may go on without this process if it ends in good order."""
        self._left.set()
        for key in list(self._peers.get_map().values()):
            try:
                if in_order and key.data is not None:
                    key.fileobj.send(_FAREWELL)  # type: ignore[union-attr]
            except OSError:
                pass  # it has left before
        # A connection that is closed with the process: to close it here would race with the thread.

    def _connect(self, store: dist.Store) -> None:  # type: ignore[name-defined, unused-ignore]
        if self._place.rank == 0:
            server = socket.create_server(("", 0), backlog=self._place.size)
            self._peers.register(server, selectors.EVENT_READ, None)
            store.set("watch", str(server.getsockname()[1]))
        else:
            port = int(store.get("watch"))
            peer = socket.create_connection((self._place.host, port), 5)
            peer.settimeout(None)
            peer.sendall(self._place.rank.to_bytes(4, "big"))
            self._peers.register(peer, selectors.EVENT_READ, 0)

    def _watch(self) -> None:
        while not self._left.is_set():
            for key, _ in self._peers.select(timeout=0.5):
                peer: Any = key.fileobj
                if key.data is None:
                    peer, _ = peer.accept()
                    peer.settimeout(5)
                    self._peers.register(
                        peer, selectors.EVENT_READ, int.from_bytes(peer.recv(4, socket.MSG_WAITALL), "big")
                    )
                    continue
                try:
                    said = peer.recv(1)
                except OSError:
                    said = b""
                self._peers.unregister(peer)
                if not said:
                    self._interrupt(key.data)
                    return

    def _interrupt(self, who: int) -> None:
        self._who = who
        self._lost.set()
        if self._left.wait(GRACE):
            return
        if callable(signal.getsignal(signal.SIGTERM)):
            os.kill(os.getpid(), signal.SIGTERM)
        if not self._left.wait(LAST):  # somewhere in C++
            print(f"error: {self.lost(0)}", file=sys.stderr, flush=True)
            os._exit(ResourceError.exit_code)
