"""How tyro reads our dataclasses: help that wraps well, names of positional arguments, and what is said of a wrong number."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from r1jax.config import commands, observe
from r1jax.config.plan import Plan

POSITIONAL = {
    commands.Train: "config", Plan: "config", commands.Compare: "runs", observe.Samples: "run", observe.Report: "runs",
    observe.Runs: "folder",
}  # fmt: skip
"""Class -> the field that is given without its name."""
NAMES = {"from_": "from"}
"""Fields whose names as options are no names in Python."""
REGISTRY = ConstructorRegistry()


@REGISTRY.struct_rule
def dataclass_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """As tyro's own, but with help of paragraphs: it keeps the line breaks of indented docstrings."""
    if not dataclasses.is_dataclass(info.type):
        return None
    hints = get_type_hints(info.type, include_extras=True)
    positional = next((field for cls, field in POSITIONAL.items() if issubclass(info.type, cls)), None)
    specs = []
    for field in dataclasses.fields(info.type):
        hint, value = hints[field.name], default(field, info)
        if field.name == positional:
            hint = Annotated[hint, tyro.conf.Positional, tyro.conf.arg(metavar=field.name.upper())]
        if field.name in NAMES:
            hint = Annotated[hint, tyro.conf.arg(name=NAMES[field.name])]
        specs.append(StructFieldSpec(field.name, hint, value, functools.partial(help_of, info.type, field.name, value)))
    return StructConstructorSpec(info.type, tuple(specs))


def default(field: dataclasses.Field, info: StructTypeInfo) -> Any:
    if isinstance(info.default, info.type):
        return getattr(info.default, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    return tyro.constructors.MISSING_NONPROP if field.default_factory is dataclasses.MISSING else field.default_factory()


def help_of(cls: type, name: str, value: Any) -> str | None:
    """The docstring below a field, or else that of the dataclass it holds."""
    for owner in cls.__mro__:
        if text := field_docs(owner).get(name):
            return paragraphs(text)
    return paragraphs(type(value).__doc__) if dataclasses.is_dataclass(value) else None


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstrings below the fields of a class; none of one without source."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    except (OSError, TypeError):
        return {}
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def paragraphs(docstring: str) -> str:
    """Each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring.strip()))


def numbers(kind: type[int] | type[float], what: str) -> None:
    """Wrong numbers are told in words of ours."""

    def from_words(words: Sequence[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"{words[0]!r} is not {what}") from None

    def fits(value: Any) -> bool:
        return isinstance(value, int | kind)

    spec = PrimitiveConstructorSpec(1, kind.__name__.upper(), from_words, fits, lambda value: [str(value)])

    @REGISTRY.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        return spec if info.type is kind else None


numbers(int, "a whole number")
numbers(float, "a number")
