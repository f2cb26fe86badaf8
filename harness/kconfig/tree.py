"""The Kconfig files of a kernel tree, read to explain why a symbol did not get its value.

kconfiglib 14.1.0 stops at two properties of Linux 6.18: ``transitional`` (which it does not know) and the bare
``modules`` (which it knows as ``option modules``). :class:`KernelConfig` rewrites such lines as files are opened, so
that line numbers stay what they are.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kconfiglib

_TRANSITIONAL = re.compile(r"^[ \t]+transitional[ \t]*$", re.MULTILINE)
_MODULES = re.compile(r"^([ \t]+)modules[ \t]*$", re.MULTILINE)


def modernised(text: str) -> str:
    """Kconfig text of 6.18 in words that kconfiglib 14.1.0 knows, line by line."""
    return _MODULES.sub(r"\1option modules", _TRANSITIONAL.sub("", text))


def _no_error(_kconf: Any, _name: str, _condition: str, _message: str) -> str:
    return ""


# kconfiglib imports the module named by KCONFIG_FUNCTIONS and looks here. A tree can be explained on a machine whose
# compiler it would refuse, so $(error-if,...) is not an error.
functions = {"error-if": (_no_error, 2, 2)}


class KernelConfig(kconfiglib.Kconfig):  # type: ignore[misc]  # kconfiglib has no types
    """kconfiglib's Kconfig, for the syntax of 6.18."""

    def _open(self, filename: str, mode: str) -> Any:
        if mode != "r":
            return super()._open(filename, mode)
        with super()._open(filename, mode) as file:
            return io.StringIO(modernised(file.read()))


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """``os.environ`` is ``env`` while the body runs: kconfiglib has no other way to be given one."""
    saved = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(env)
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


class Explainer:
    """Says why symbols of a tree have the values they have in one .config.

    ``env`` is the environment that the kernel's Makefile gives Kconfig (srctree, SRCARCH, CC, KERNELVERSION, ...).
    Reading an architecture of a real kernel takes about 4 s. Raises kconfiglib.KconfigError for files it cannot read.
    """

    def __init__(self, tree: Path, env: Mapping[str, str], config: Path) -> None:
        merged = {**env, "srctree": str(tree), "KCONFIG_FUNCTIONS": __name__, "CONFIG_": "CONFIG_"}
        with _environment(merged):
            self.kconf = KernelConfig("Kconfig", warn=False)
            self.kconf.load_config(str(config))

    def __call__(self, name: str, wanted: str, got: str) -> str:
        """The reason, in one line, why ``name`` is ``got`` and not ``wanted``."""
        symbol = self.kconf.syms.get(name)
        if symbol is None or not symbol.nodes:
            known = [s.name for s in self.kconf.unique_defined_syms]
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
            return "unknown symbol" + (f"; close: {', '.join(close)}" if close else "")
        kind = kconfiglib.TYPE_TO_STR[symbol.orig_type]
        if symbol.orig_type in (kconfiglib.STRING, kconfiglib.INT, kconfiglib.HEX):
            return self._value(symbol, kind, wanted)
        if wanted not in ("y", "m", "n"):
            return f"it is a {kind}, which takes y or n"
        if wanted == "m" and symbol.orig_type == kconfiglib.BOOL:
            return "it is a bool, which cannot be a module"
        if wanted == "n":
            return self._forced(symbol)
        return self._missing(symbol, wanted, got)

    def _missing(self, symbol: Any, wanted: str, got: str) -> str:
        """Why a bool or tristate is less than was asked for."""
        if kconfiglib.expr_value(symbol.direct_dep) == 0:
            return "needs " + self._unmet(symbol.direct_dep)
        if wanted == "m" and got != "m":
            return "modules are off" if self.kconf.modules.tri_value == 0 else "it cannot be a module"
        prompts = [node.prompt[1] for node in symbol.nodes if node.prompt]
        if not prompts:
            by = [s.name for s in _symbols(symbol.rev_dep)][:4]
            return "it has no prompt" + (f", only others select it: {', '.join(by)}" if by else "")
        if all(kconfiglib.expr_value(condition) == 0 for condition in prompts):
            return "can be set only with " + " or ".join(self._unmet(c) for c in prompts)
        if symbol.choice is not None:
            chosen = symbol.choice.selection
            return f"its choice has {chosen.name if chosen else 'nothing'} selected"
        return "its dependencies are met, yet Kconfig dropped it"

    def _forced(self, symbol: Any) -> str:
        """Why a bool or tristate is on that was asked to be off."""
        selecting = [
            kconfiglib.split_expr(term, kconfiglib.AND)[0]
            for term in kconfiglib.split_expr(symbol.rev_dep, kconfiglib.OR)
            if kconfiglib.expr_value(term) > 0
        ]
        if selecting:
            return "selected by " + ", ".join(s.name for s in selecting if isinstance(s, kconfiglib.Symbol))
        if not any(node.prompt and kconfiglib.expr_value(node.prompt[1]) for node in symbol.nodes):
            return "it has no prompt here, its default counts"
        if symbol.choice is not None and symbol.choice.selection is symbol:
            return "its choice needs a member that is selected"
        return "Kconfig turned it on"

    def _value(self, symbol: Any, kind: str, wanted: str) -> str:
        """Why a string or number is not what was asked for."""
        if kconfiglib.expr_value(symbol.direct_dep) == 0:
            return "needs " + self._unmet(symbol.direct_dep)
        if (symbol.orig_type == kconfiglib.STRING) != wanted.startswith('"'):
            return f"it is a {kind}"
        for low, high, condition in symbol.ranges:
            if kconfiglib.expr_value(condition):
                return f"the range is {low.str_value} to {high.str_value}"
        if not any(node.prompt and kconfiglib.expr_value(node.prompt[1]) for node in symbol.nodes):
            return "it has no prompt here, its default counts"
        return "Kconfig changed it"

    def _unmet(self, expr: Any, depth: int = 2) -> str:
        """The terms of a dependency that are n, each with its value, and for one more level what they need."""
        terms = [t for t in kconfiglib.split_expr(expr, kconfiglib.AND) if kconfiglib.expr_value(t) == 0]
        # A member depends on its choice, which is hidden for the same reason as its members.
        terms = [t for t in terms if not isinstance(t, kconfiglib.Choice)] or terms
        said = []
        for term in terms:
            text = kconfiglib.expr_str(term, _with_value)
            if (
                depth
                and isinstance(term, kconfiglib.Symbol)
                and term.nodes
                and kconfiglib.expr_value(term.direct_dep) == 0
            ):
                text += f" (which needs {self._unmet(term.direct_dep, depth - 1)})"
            said.append(f"({text})" if len(terms) > 1 and " || " in text else text)
        return " and ".join(dict.fromkeys(said))


def _with_value(item: Any) -> str:
    """A symbol of an expression with its value: ``SLUB_TINY[=y]``, as menuconfig shows it."""
    plain = str(kconfiglib.standard_sc_expr_str(item))
    if not isinstance(item, kconfiglib.Symbol) or item.is_constant:
        return plain
    return f"{plain}[={item.str_value}]" if item.nodes else f"{plain}[undefined]"


def _symbols(expr: Any) -> list[Any]:
    """The first symbol of every alternative of an expression: those that select."""
    found = []
    for term in kconfiglib.split_expr(expr, kconfiglib.OR):
        head = kconfiglib.split_expr(term, kconfiglib.AND)[0]
        if isinstance(head, kconfiglib.Symbol) and not head.is_constant:
            found.append(head)
    return found
