"""The file name is the registry: ``rounding/adaround.py`` *is* ``adaround``.

A name (``low-rank`` or ``low_rank``) stands for a module of a package, and the module holds one class of the same name
in CamelCase (``LowRank``). Other distributions add names with entry points in the group that is
called like the package (``halftone.methods.rounding``), whose value is ``module:Class``.
"""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from types import ModuleType
from typing import Any

from halftone.foundation.build import build
from halftone.foundation.errors import ConfigError, suggest


def find(package: str, name: str, where: str = "") -> type:
    """Return the class that ``name`` stands for in ``package``, importing only its module.

    ``where`` is the key that holds the name, for messages.

    >>> find("halftone.foundation", "progress").__name__
    'Progress'

    Raises:
        ConfigError: unknown name (with a suggestion); a name taken twice; a module or entry point without its class.
    """
    plugins = [point for point in _plugins(package) if _normal(point.name) == _normal(name)]
    own = _normal(name) in _modules(package)
    if not own and not plugins:
        raise ConfigError(where or package, "a known name", f"'{name}'", suggest(_normal(name), names(package)))
    if own + len(plugins) > 1:
        owners = [package] * own + [_owner(point) for point in plugins]
        raise ConfigError(f"{package}: '{name}'", "one owner", " and ".join(owners), "Uninstall all but one.")
    if own:
        return _class_of(importlib.import_module(f"{package}.{_normal(name)}"))
    return _load(plugins[0])


def names(package: str) -> list[str]:
    """Return all names that ``find`` knows in ``package``, sorted, without importing what they stand for."""
    return sorted({*_modules(package), *(_normal(point.name) for point in _plugins(package))})


def make(package: str, described: str | Mapping[str, Any], where: str) -> Any:
    """Return an instance of the class of ``package`` that plain data describe: a name, or a mapping of name and fields.

    Raises:
        ConfigError: no name, an unknown one, or a field it does not have.
    """
    fields = {"name": described} if isinstance(described, str) else dict(described)
    if not isinstance(fields.get("name"), str):
        raise ConfigError(f"{where}.name", "one of " + ", ".join(names(package)), repr(fields.get("name")))
    return build(find(package, fields.pop("name"), where), fields, where)


def _normal(name: str) -> str:
    return name.replace("-", "_")


def _modules(package: str) -> set[str]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package named {package!r}", name=package)
    found = pkgutil.iter_modules(spec.submodule_search_locations)
    return {module.name for module in found if not module.ispkg and not module.name.startswith("_")}


def _plugins(package: str) -> tuple[EntryPoint, ...]:
    return _offered(entry_points, package, tuple(sys.path))


@cache
def _offered(read: Callable[..., EntryPoints], package: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    # Reading them opens the metadata of everything installed on ``path``: a quarter of a small run's time when asked each time.
    return tuple(read(group=package))


def _class_of(module: ModuleType) -> type:
    wanted = module.__name__.rpartition(".")[2].replace("_", "")
    for name, value in vars(module).items():
        # `__module__` leaves out classes that the module merely imports.
        if inspect.isclass(value) and name.lower() == wanted and value.__module__ == module.__name__:
            return value
    raise ConfigError(module.__name__, f"a class named like the file ('{wanted}', in CamelCase)", "none")


def _load(point: EntryPoint) -> type:
    where = f"entry point '{point.name}' of {_owner(point)}"
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(where, f"to load {point.value}", f"{type(error).__name__}: {error}") from error
    if not inspect.isclass(loaded):
        raise ConfigError(where, "a class", f"{point.value}, a {type(loaded).__name__}")
    return loaded


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
