"""Doing something right after a module is imported, without importing it."""

import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Sequence


def after_import(name: str, action: Callable[[], None]) -> None:
    """Calls `action` once the module `name` has been imported: now if it already is, otherwise later or never.

    Args:
        name: Full name of a module on the import path.
        action: What to do.
    """
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watch(name, action))


class _Watch:
    """Finds one module as Python would, and does something when its code has run.

    It is no subclass of `importlib.abc.MetaPathFinder`, which takes longer to import than the rest of the package.
    """

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_act(module: types.ModuleType) -> None:
            execute(module)
            # Only now, because a failed import may be tried again.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._action()

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Teaches transformers, whenever it is imported, to prune on load and to read compressed checkpoints."""
    after_import("transformers.modeling_utils", _register)


def _register() -> None:
    try:
        from .quantizer import register

        register()
    except (ImportError, AttributeError) as error:
        # Whoever imports transformers may need neither, and pruning in memory does not depend on it.
        warnings.warn(
            "optimum-mwanda cannot prune on load or read compressed checkpoints with this version of transformers: "
            f"{error}",
            stacklevel=2,
        )
