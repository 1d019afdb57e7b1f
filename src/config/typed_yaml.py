"""Read YAML by the types of the settings: text is taken as written, whatever YAML would make of it (`007`, `12:30`)."""

import re
import types
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf

_NULL = "tag:yaml.org,2002:null"
_TEXT = "tag:yaml.org,2002:str"


def read_yaml(content: str, hint: Any) -> Any:
    """Parse YAML into plain values; `${...}` stays as it is. Plain scalars of text fields are text.

    Args:
        hint: type of the content.

    Raises:
        yaml.YAMLError: not YAML.
    """
    node = yaml.compose(content, yaml.SafeLoader)
    if node is None:
        return None
    _mark_text(node, hint)
    key = yaml.ScalarNode(_TEXT, "value")
    whole = yaml.MappingNode("tag:yaml.org,2002:map", [(key, node)])
    # back to text and through omegaconf's loader, which reads 1e3 as a number and refuses a key given twice
    return OmegaConf.to_container(OmegaConf.create(yaml.serialize(whole, allow_unicode=True, width=2**30)))["value"]  # type: ignore[index, call-overload]


def hint_of(key: str, root: Any) -> Any:
    """Type of a dotted key, such as `data.sources.0.path`; None if there is no such key."""
    hint = root
    for name in key.split("."):
        hint = _inner(hint, name)
    return hint


def is_text(hint: Any) -> bool:
    """Whether a field holds text, or one of several words; null may be allowed too."""
    options = _options(hint)
    return bool(options) and all(each is str or isinstance(each, str) for each in options)


def allows_null(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def literal(text: str, is_reference: Callable[[str], bool] = lambda key: False) -> str:
    """`text` such that omegaconf reads its `${` as they are, except for `${key}` where `is_reference(key)`."""

    def escape(match: re.Match[str]) -> str:
        reference = match[2] is not None and is_reference(match[2].rstrip("}"))
        return match[1] * 2 + ("" if reference else "\\") + "${" + (match[2] or "")

    return re.sub(r"(\\*)\$\{([\w.]+\})?", escape, text)


def literals(value: Any) -> Any:
    """`literal` of all text in nested lists and dictionaries."""
    if isinstance(value, dict):
        return {key: literals(each) for key, each in value.items()}
    if isinstance(value, list):
        return [literals(each) for each in value]
    return literal(value) if isinstance(value, str) else value


def _mark_text(node: yaml.Node, hint: Any) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _mark_text(value, _inner(hint, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _mark_text(value, _inner(hint, "0"))
    elif is_text(hint) and node.tag != _NULL:
        node.tag, node.style = _TEXT, node.style or "'"  # quoted, or omegaconf's loader would decide again


def _inner(hint: Any, name: str) -> Any:
    """Type of a field of a dataclass, or of an item of a list; None if there is none."""
    for option in _options(hint):
        if is_dataclass(option):
            return typing.get_type_hints(option).get(name)
        if typing.get_origin(option) is list and name.isdecimal():
            return typing.get_args(option)[0]
    return None


def _options(hint: Any) -> list[Any]:
    """Members of a union or of a Literal, without None."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [option for each in typing.get_args(hint) for option in _options(each)]
    if origin is typing.Literal:
        return list(typing.get_args(hint))
    return [] if hint in (None, type(None)) else [hint]
