"""What the user's own code imports from the folder it lies in, whenever it does.

A factory may import its neighbours when its file is read, when it is called, or in a ``forward`` that
runs long after. So an import statement of such code looks in its own folder first, as ``python file.py``
does, and nothing else of the process sees that folder: ``sys.path`` stays as it is. Each folder keeps its own
modules, so that the ``utils.py`` of one is never taken for that of another, or for an installed package.
"""

from __future__ import annotations

import builtins
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

#: names that are never looked for beside the user's code: two of them in a process do not go together
SHARED = sys.stdlib_module_names | {
    "alphatune",
    "numpy",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
    "triton",
}

_lock = threading.RLock()  # while a folder comes first for an import, those of other folders wait
_folders: dict[str, Neighbours] = {}


def _renew_lock() -> None:
    """In a process that was forked while another thread held it, nobody would let it go."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def neighbours_in(folder: str) -> Neighbours:
    """The modules of a folder; the same again for the same folder."""
    folder = os.path.realpath(folder)
    return _folders.setdefault(folder, Neighbours(folder))


def files_of_neighbours() -> set[str]:
    """The files of all modules that were found beside the user's code."""
    modules = [module for folder in list(_folders.values()) for module in folder.modules.values()]
    return {file for module in modules if (file := getattr(module, "__file__", None))}


class Neighbours(importlib.abc.MetaPathFinder):
    """The modules of one folder, and the way to them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.modules: dict[str, ModuleType] = {}
        self._found: set[str] = set()
        own = _Import(self)
        #: of every module of the folder: CPython takes from here what an import statement calls
        self._builtins = {**vars(builtins), "__import__": own}

    def load(self, name: str, path: str) -> ModuleType:
        """Run a file of the folder, as a module of this name."""
        spec: Any = importlib.util.spec_from_file_location(name, path)
        spec.loader = self._hooked(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # so that the model's classes can be pickled
        with self.first():
            spec.loader.exec_module(module)
        return module

    def calling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, for which ``importlib.import_module`` finds the neighbours too while it runs."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with _lock:
                hidden = self._enter()
            try:  # without the lock: the function may wait for a thread of its own that imports
                return function(*args, **kwargs)
            finally:
                with _lock:
                    self._leave(hidden)

        call.__name__ = getattr(function, "__name__", type(function).__name__)
        return call

    @contextmanager
    def first(self) -> Iterator[None]:
        """Look in this folder before all others."""
        with _lock:
            if sys.meta_path and sys.meta_path[0] is self:
                yield
                return
            hidden = self._enter()
            try:
                yield
            finally:
                self._leave(hidden)

    def _enter(self) -> dict[str, ModuleType]:
        hidden = self._hide_others()
        sys.modules.update(self.modules)
        sys.meta_path.insert(0, self)
        return hidden

    def _leave(self, hidden: dict[str, ModuleType]) -> None:
        sys.meta_path.remove(self)
        self.modules = {name: sys.modules[name] for name in self._found if name in sys.modules}
        taken = set(map(_top, hidden))
        for name in self.modules:
            if _top(name) in taken:
                del sys.modules[name]
        sys.modules.update(hidden)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of that name in the folder, or in a package of it."""
        top, _, rest = fullname.partition(".")
        if top in SHARED or (rest and top not in self._found):
            return None
        spec = PathFinder.find_spec(fullname, path if rest else [self.folder], target)
        if spec is None:
            return None
        if spec.loader is None:  # a folder without __init__.py, which an installed package goes before
            if not rest and _is_elsewhere(fullname, self):
                return None
            # Not the list that follows sys.path, and would go over to another folder of that name.
            spec.submodule_search_locations = list(spec.submodule_search_locations or ())
        self._found.add(fullname)
        spec.loader = self._hooked(spec.loader)
        return spec

    def has(self, top: str) -> bool:
        """Whether an import of this name is one of a neighbour."""
        if top in SHARED:
            return False
        return top in self._found or PathFinder.find_spec(top, [self.folder]) is not None

    def _hide_others(self) -> dict[str, ModuleType]:
        """Take modules out of ``sys.modules`` that go by a neighbour's name and are of somewhere else."""
        here = {module.name for module in pkgutil.iter_modules([self.folder])} | set(map(_top, self._found))
        others = {
            name
            for name in here - SHARED
            if (module := sys.modules.get(name)) is not None
            and module is not self.modules.get(name)
            and not self._holds(module)
        }
        if not others:
            return {}
        return {name: sys.modules.pop(name) for name in list(sys.modules) if _top(name) in others}

    def _holds(self, module: ModuleType) -> bool:
        file = getattr(module, "__file__", None)
        if not file:
            return False
        place = Path(file).resolve().parent
        return Path(self.folder) == (place.parent if hasattr(module, "__path__") else place)

    def _hooked(self, loader: Any) -> Any:
        """The loader, so that the module gets this folder's import before its code is run."""
        if not isinstance(loader, importlib.machinery.SourceFileLoader):
            return loader
        return _Loader(loader.name, loader.path, self._builtins)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, own_builtins: dict[str, Any]) -> None:
        super().__init__(name, path)
        self._builtins = own_builtins

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._builtins
        super().exec_module(module)


class _Import:
    """What ``import`` calls in the modules of a folder."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours

    def __call__(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        package = (globals or {}).get("__package__") or "" if level else name
        if not self._neighbours.has(_top(package)):
            return builtins.__import__(name, globals, locals, fromlist, level)
        with self._neighbours.first():
            return builtins.__import__(name, globals, locals, fromlist, level)


def _is_elsewhere(name: str, but: Neighbours) -> bool:
    if (module := sys.modules.get(name)) is not None and getattr(module, "__file__", None):
        return True
    finders = [finder for finder in sys.meta_path if finder is not but and hasattr(finder, "find_spec")]
    specs = (finder.find_spec(name, None) for finder in finders)
    return any(spec is not None and spec.loader is not None for spec in specs)


def _top(name: str) -> str:
    return name.partition(".")[0]
