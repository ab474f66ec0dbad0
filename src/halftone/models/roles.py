"""Roles: what each linear and convolution of a denoiser is.

A role comes from the table of the denoiser's class (``tables/<Class>.toml``), or else from its place in a known parent class
(``tables/_inferred.toml``). Never from registration order.
"""

import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path

from torch import nn

from halftone.foundation.errors import MatchError

_TABLES = "halftone.models.tables"
_CROSS = ":cross"  # after the class of a module that says that it is a cross-attention
QUANTIZABLE = (nn.Linear, nn.Conv2d)
# Modules whose weights are not a linear or 2-D convolution that a kernel here could run; they are left float.
_OTHER_WEIGHTED = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Role:
    """The role of one layer.

    Attributes:
        inferred: True when no table of this architecture named it.
    """

    path: str
    name: str
    inferred: bool


@dataclass(frozen=True)
class Architecture:
    """All roles of a denoiser by path, in registration order, and the classes that are reconstructed whole."""

    roles: dict[str, Role]
    unit_classes: frozenset[str]

    def is_unit(self, path: str, module: nn.Module) -> bool:
        """Return whether ``module`` is reconstructed as one piece: a known block, or a layer with a role."""
        return class_name(module) in self.unit_classes or path in self.roles

    def within(self, path: str) -> "Architecture":
        """Return the architecture of the submodule at ``path``, with paths as seen from there."""
        inside = {
            each.removeprefix(f"{path}."): role for each, role in self.roles.items() if each.startswith(f"{path}.")
        }
        return Architecture({each: replace(role, path=each) for each, role in inside.items()}, self.unit_classes)


def _read(text: str) -> tuple[dict[str, str], frozenset[str]]:
    table = tomllib.loads(text)
    return table.get("roles", {}), frozenset(table.get("units", {}).get("classes", ()))


def table_of(name: str) -> tuple[dict[str, str], frozenset[str]] | None:
    """Return the globs and unit classes of the architecture called ``name``, or None when there is no table."""
    file = resources.files(_TABLES).joinpath(f"{name}.toml")
    return _read(file.read_text()) if file.is_file() else None


def matches(glob: str, model: nn.Module, path: str) -> bool:
    """Return whether ``glob`` of the table of ``model`` fits the layer at ``path``: the path itself or, of a glob with ``:cross``
    (which no path has), the path as seen from any of the modules around it."""
    return any(fnmatchcase(text, glob) for text in (_seen(model, path) if _CROSS in glob else [path]))


def _first(globs: dict[str, str], model: nn.Module, path: str) -> str | None:
    return next((role for glob, role in globs.items() if matches(glob, model, path)), None)


def class_name(module: nn.Module) -> str:
    """Return the name of the module's class; where that is one of Halftone's, of the one it takes the place of."""
    return next(kind.__name__ for kind in type(module).__mro__ if not kind.__module__.startswith("halftone.nn"))


def _title(module: nn.Module) -> str:
    """Return the class name by which a glob knows ``module``, with ``:cross`` where it says that it is a cross-attention."""
    cross = getattr(module, "is_cross_attention", False) is True
    return class_name(module) + (_CROSS if cross else "")


def _seen(model: nn.Module, path: str) -> list[str]:
    """Return ``Class.path`` from each of the modules around the layer, the model first."""
    parts = path.split(".")
    owners = [model.get_submodule(".".join(parts[:depth])) if depth else model for depth in range(len(parts))]
    return [f"{_title(owner)}.{'.'.join(parts[depth:])}" for depth, owner in enumerate(owners)]


def _structural(model: nn.Module, path: str, globs: dict[str, str]) -> str | None:
    """Return the role of the first glob that fits the path as seen from any of the modules around it.

    ``FeedForward.net.2`` counts from each of them, so a glob can reach as far up as it needs: of ``attn2.to_k`` inside a
    ``BasicTransformerBlock``, ``BasicTransformerBlock.attn2.to_k`` is asked as well as ``Attention.to_k``.
    """
    seen = _seen(model, path)
    return next((role for glob, role in globs.items() if any(fnmatchcase(text, glob) for text in seen)), None)


def architecture(model: nn.Module, table: Path | None = None) -> Architecture:
    """Return the roles of every linear and 2-D convolution of ``model``.

    Args:
        table: a role table to use instead of the built-in one (same TOML layout).

    Raises:
        MatchError: a layer that nobody can place (all of them named), or a model without any such layer.
    """
    own = _read(table.read_text()) if table else table_of(type(model).__name__)
    inferred_globs, inferred_units = _read(resources.files(_TABLES).joinpath("_inferred.toml").read_text())
    roles: dict[str, Role] = {}
    unplaced: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, QUANTIZABLE) or isinstance(module, _OTHER_WEIGHTED):
            continue
        named = _first(own[0], model, path) if own else None
        role = named or _structural(model, path, inferred_globs)
        if role is None:
            parent = type(model.get_submodule(path.rpartition(".")[0])).__name__
            unplaced.append(f"{path} ({type(module).__name__} in {parent})")
        else:
            roles[path] = Role(path, role, inferred=named is None)
    name = type(model).__name__
    if unplaced:
        fix = f"Write a role table for it (see docs/adding-an-architecture.md) and pass it, or add models/tables/{name}.toml."
        raise MatchError(f"roles of {name}", "a role for every layer", "none for " + ", ".join(unplaced), fix)
    if not roles:
        raise MatchError(f"roles of {name}", "at least one linear or 2-D convolution", "none")
    return Architecture(roles, own[1] if own and own[1] else inferred_units)
