"""``--where 'rank>=64 and lr==5e-4'``: choose runs by their config and status, without ever running the text.

The expression is Python's, read by `ast` with a whitelist: comparisons (``== != < <= > >= in not in``, chained too),
``and``, ``or``, ``not``, parentheses and lists. Names are config keys, their aliases (``lr``), parts of nested keys
(``method_args.rho``) and the status keys below. Any other word is a string, quoted or not: ``method==mgpo-released``.
A key that is null or absent in a run equals only ``null``, and no order comparison with it holds.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from landscape.config.overrides import NESTED, lookup
from landscape.config.run import ALIASES, Capture, RunConfig
from landscape.config.sweep import same
from landscape.errors import UsageError, nearest, unknown

STATUS_KEYS = ("id", "state", "step")
STATES = ("queued", "running", "done", "failed", "diverged", "interrupted")

_MAX_LENGTH = 1000
_KEYWORDS = {"and", "or", "not", "in"}
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<string>'[^'\\]*'|"[^"\\]*")
      | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
      | (?P<word>[A-Za-z_~/][\w.]*(?:[-/:]+[\w.]+)*)
      | (?P<operator>==|!=|<=|>=|<|>|[()\[\],])
    """,
    re.VERBOSE,
)
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Where:
    """A parsed expression; build it with `Where.parse`."""

    text: str
    expression: ast.expr

    @classmethod
    def parse(cls, text: str) -> Where:
        """Read an expression.

        Raises:
            UsageError: a syntax error, anything outside the whitelist, or an unknown key or state (nearest named).
        """
        if len(text) > _MAX_LENGTH:
            raise UsageError(f"--where: {len(text)} characters; at most {_MAX_LENGTH}")
        source = _quote_words(text)
        if not source:
            raise UsageError("--where: empty; write for example 'rank>=64 and lr==5e-4'")
        try:
            expression = _FoldSigns().visit(ast.parse(source, mode="eval")).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise UsageError(f"--where {text!r}: not an expression such as 'rank>=64 and lr==5e-4'") from None
        _check(expression, text)
        return cls(text, expression)

    def matches(self, values: Mapping[str, Any]) -> bool:
        """Whether a run is meant.

        Args:
            values: the run's config keys (`RunConfig.model_dump`) and its `STATUS_KEYS`.

        Raises:
            UsageError: an order comparison between a number and a word.
        """
        return _evaluate(self.expression, values)


class _FoldSigns(ast.NodeTransformer):
    """``-1`` is a sign before a number in Python's grammar; here it is a number."""

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        number = node.operand.value if isinstance(node.operand, ast.Constant) else None
        if isinstance(node.op, ast.USub) and isinstance(number, (int, float)):
            return ast.Constant(-number)
        return node


def _quote_words(text: str) -> str:
    """The same expression with every bare word quoted, unless it is a key, a keyword or a constant."""
    parts, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            hint = " (equality is ==)" if text[position] == "=" else " (quote words that hold such characters)"
            raise UsageError(f"--where {text!r}: cannot read {text[position]!r} at character {position + 1}{hint}")
        word, position = match.group(), match.end()
        if match.lastgroup == "word":
            if word.lower() in _CONSTANTS:
                word = repr(_CONSTANTS[word.lower()])
            elif word not in _KEYWORDS and not _is_key(word):
                word = repr(word)
        parts.append(" " if match.lastgroup == "space" else word)
    return "".join(parts).strip()


def _is_key(word: str) -> bool:
    root, dot, rest = word.partition(".")
    if not re.fullmatch(r"[\w.]+", word):
        return False
    if dot:
        return root in NESTED and rest.isidentifier()
    return root in RunConfig.model_fields or root in ALIASES or root in STATUS_KEYS


def _check(node: ast.expr, text: str) -> None:
    """Refuse whatever is not on the whitelist, before any run is looked at."""
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand, text)
    elif isinstance(node, ast.Compare):
        _check_compare(node, text)
    elif (key := _key(node)) is not None:
        if not _is_flag(key):
            raise UsageError(f"--where {text!r}: compare {key} with a value, for example {key}==8")
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        raise _unknown_key(node.value, text)
    else:
        raise UsageError(f"--where {text!r}: only comparisons, and, or, not, lists and parentheses are understood")


def _check_compare(node: ast.Compare, text: str) -> None:
    sides = [node.left, *node.comparators]
    for side in sides:
        elements = side.elts if isinstance(side, (ast.List, ast.Tuple)) else [side]
        for element in elements:
            if not (isinstance(element, ast.Constant) or _key(element) is not None):
                raise UsageError(f"--where {text!r}: compare a key with a word, a number or a list of them")
    keys = [key for side in sides if (key := _key(side)) is not None]
    if not keys:
        name = next((str(s.value) for s in sides if isinstance(s, ast.Constant) and isinstance(s.value, str)), text)
        raise _unknown_key(name, text)
    for key in keys:
        _check_part(key)
    for op, right in zip(node.ops, node.comparators, strict=True):
        is_list = isinstance(right, (ast.List, ast.Tuple))
        if is_list != isinstance(op, (ast.In, ast.NotIn)):
            raise UsageError(f"--where {text!r}: a list follows `in` or `not in`, as in rank in [8, 32]")
    if "state" in keys:
        for side in sides:
            for element in side.elts if isinstance(side, (ast.List, ast.Tuple)) else [side]:
                if isinstance(element, ast.Constant) and element.value not in STATES:
                    raise unknown("--where: state", element.value, STATES)


def _check_part(key: str) -> None:
    root, _, rest = key.partition(".")
    if root == "capture" and rest and rest not in Capture.model_fields:
        raise unknown("--where: capture", rest, Capture.model_fields)


def _unknown_key(name: str, text: str) -> UsageError:
    known = {*RunConfig.model_fields, *ALIASES, *STATUS_KEYS}
    return UsageError(f"--where {text!r}: unknown key {name!r}.{nearest(name, known)}")


def _key(node: ast.expr) -> str | None:
    """The canonical (possibly dotted) key that a node names."""
    if isinstance(node, ast.Name):
        return ALIASES.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return None


def _is_flag(key: str) -> bool:
    if key == "capture.moments":
        return True
    return key in RunConfig.model_fields and RunConfig.model_fields[key].annotation is bool


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> bool:
    if isinstance(node, ast.BoolOp):
        combine = all if isinstance(node.op, ast.And) else any
        return combine(_evaluate(value, values) for value in node.values)
    if isinstance(node, ast.UnaryOp):
        return not _evaluate(node.operand, values)
    if isinstance(node, ast.Compare):
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if not _compare(op, left, right, values):
                return False
            left = right
        return True
    return bool(_value(node, values))


def _compare(op: ast.cmpop, left: ast.expr, right: ast.expr, values: Mapping[str, Any]) -> bool:
    first = _value(left, values)
    if isinstance(right, (ast.List, ast.Tuple)):
        found = any(same(first, _value(element, values)) for element in right.elts)
        return found == isinstance(op, ast.In)
    second = _value(right, values)
    if isinstance(op, (ast.Eq, ast.NotEq)):
        return same(first, second) == isinstance(op, ast.Eq)
    if first is None or second is None:
        return False
    try:
        return _ORDER[type(op)](first, second)
    except TypeError:
        names = f"{_key(left) or first!r} and {_key(right) or second!r}"
        raise UsageError(f"--where: {names} cannot be ordered: {first!r} against {second!r}") from None


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    return lookup(values, _key(node) or "")
