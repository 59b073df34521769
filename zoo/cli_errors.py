"""What the parser and the run complain about, in one line each."""

from __future__ import annotations

import dataclasses
import dis
import errno
import re
from collections.abc import Iterable, Sequence
from pkgutil import resolve_name
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo.class_paths import refusal
from zoo.config_files import UsageError
from zoo.registry import suggest

OUR_PACKAGES = {"zoo", "datamodules", "callbacks"}
REFUSALS = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS}
"""What a disk or folder answers that takes nothing more: no bug, whoever met it."""


def plain_message(error: Exception) -> str | None:
    """The message of ``error`` if it was written for the user, so that a traceback would only hide it.

    So is whatever a ``raise`` statement of our own raised, Lightning's complaints about a setting, and a disk that
    takes nothing more. What else went wrong inside a statement, here or in a library, is a bug: ``None``.
    """
    cause: BaseException = error
    while _raised_in(cause) == "jsonargparse" and cause.__cause__ is not None:
        cause = cause.__cause__  # a constructor's error, inside one about every alternative of a type
    about_settings = isinstance(cause, (MisconfigurationException, ValueError))
    ours = _raised_in(cause) in OUR_PACKAGES or (isinstance(cause, OSError) and cause.errno in REFUSALS)
    return str(cause).strip() if ours or (about_settings and _raised_in(cause) == "lightning") else None


def _raised_in(error: BaseException) -> str:
    """Top-level package whose ``raise`` statement raised ``error``; empty where no such statement did."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or isinstance(error, AssertionError):
        return ""
    raised = last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return last.tb_frame.f_globals.get("__name__", "").partition(".")[0] if raised else ""


class ZooParser(LightningArgumentParser):
    """A parser whose errors are one line with the nearest existing names instead of pages of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # What was typed is also read by name before it is parsed: a shortened one would be passed over there.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError; inner parsers, whose errors become part of another message, do as before."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [action.dest for action in parser._actions if not action.dest.endswith(".help")]
        raise UsageError(explain(message, options)) from ex


def explain(message: str, options: Sequence[str]) -> str:
    """Boil a message of jsonargparse down to one line: which key, what is wrong, what is near.

    Args:
        message: as jsonargparse wrote it, for unions of types one alternative below the other.
        options: every dotted key the parser knows.
    """
    if denied := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return refusal(denied[1])
    if unknown := re.search(r"(?:unrecognized arguments: -*|does not accept option ')([\w.+]+)", message):
        return _unknown_key(unknown[1], options)
    if missing := re.findall(r"\w+\.(model|data)\b", message if "are required: " in message else ""):
        options = [f"--{name} CLASS" for name in missing]
        return f"no {' and no '.join(missing)} was chosen: give --config NAME, or {' '.join(options)}"
    cause = first_cause(message)
    if refused := re.fullmatch(r"Option '(.+)' is not accepted", cause.text):
        return _unknown_option(cause, refused[1])
    if unfound := re.fullmatch(r"Expected a dot import path string: (.*)", cause.text):
        near = suggest(unfound[1], cause.classes)
        return f"{cause.key}: there is no class {unfound[1]!r}{_did_you_mean(near)}"
    return ": ".join(filter(None, [cause.key, cause.class_path, cause.text]))


@dataclasses.dataclass
class Cause:
    """The first thing that went wrong in a nested message.

    Args:
        key: dotted key of the setting.
        class_path: the class whose option it is, if any.
        text: the complaint.
        classes: names of the classes that would have been accepted.
    """

    key: str = ""
    class_path: str = ""
    text: str = ""
    classes: Sequence[str] = ()


STRUCTURE = re.compile(
    r"Does not validate|Expected a path but|Errors:|Given value type:"
    r"|Not a valid subclass|Subclass types expect|a class path \(str\)|a dict with"
    r"|Expected a <class '(NoneType|list)'>$"
)
"""Lines that say how the message is built, not what is wrong."""


def first_cause(message: str) -> Cause:
    """Find the first complaint of a nested message, and by its indentation the keys that lead to it."""
    levels: list[tuple[int, str, str]] = []
    types: list[str] = []
    causes: list[Cause] = []
    key, found, bases = "", "", ""
    for line in filter(str.strip, message.splitlines()):
        text = " ".join(line.split()).removeprefix("- ")
        indent = len(line) - len(line.lstrip())
        levels = [level for level in levels if level[0] < indent]
        if opening := re.match(r"""(Parser key|Problem with given class_path) ["'](.+?)["']:\s*""", text):
            levels.append((indent, opening[1], opening[2]))
            text = text[opening.end() :]
        if listed := re.match(r"Subtypes: (.*)", text):
            bases = bases if causes else listed[1]
        elif given := re.match(r"Given value: (.*)", text):
            found = found or given[1]
        elif text and not STRUCTURE.match(text):
            if not causes:
                key = ".".join(name for _, kind, name in levels if kind == "Parser key")
            if re.match(r"Expected an? (<class|typing)", text):
                types.append(text)
            else:
                owners = [name for _, kind, name in levels if kind != "Parser key"]
                causes.append(Cause(key, owners[-1] if owners else "", text))
    if not causes:
        return Cause(key, text=_expectation(types, found) if types else " ".join(message.split()))
    cause = causes[0]
    if not bases:  # one alternative: all lines belong together
        return dataclasses.replace(cause, text=" ".join(other.text for other in causes))
    cause.classes = subclass_names(bases)
    if not cause.class_path and cause.text.startswith("Import path"):
        cause.class_path = found
    return cause


def _expectation(types: Iterable[str], found: str) -> str:
    """``Expected a <class 'int'>. Got value: x`` in plain words, for one or several accepted types."""
    names = []
    for text in types:
        expected, _, got = text.partition(". Got value: ")
        found = got or found
        name = re.sub(r"Expected an? |typing\.", "", re.sub(r"<class '([\w.]*)'>", r"\1", expected))
        names.append(re.sub(r"Literal\[(.*)\]", r"one of \1", name))
    return f"expected {' or '.join(dict.fromkeys(names))}, found {found}"


def subclass_names(bases: str) -> list[str]:
    """Names of all loaded subclasses of the classes whose dotted paths occur in the text ``bases``."""
    names: set[str] = set()
    for class_path in re.findall(r"[a-z_][\w.]*\.[A-Z]\w*", bases):
        pending = [resolve_name(class_path)]
        while pending:
            cls = pending.pop()
            names.add(cls.__name__)
            pending += cls.__subclasses__()
    return sorted(names)


def _unknown_key(key: str, options: Sequence[str]) -> str:
    near = suggest(key, options)
    if not near:  # `--modl.backbone`: only the first part can be near
        near = suggest(key.partition(".")[0], {option.partition(".")[0] for option in options})
    return f"there is no option {key!r}{_did_you_mean(near)}"


def _unknown_option(cause: Cause, option: str) -> str:
    cls = resolve_name(cause.class_path)
    known = ArgumentParser(exit_on_error=False).add_class_arguments(cls, fail_untyped=False)
    hint = _did_you_mean(suggest(option, known)) or f"; it has {', '.join(known) or 'none'}"
    return f"{cause.key}.{option}: {cls.__name__} has no such option{hint}"


def _did_you_mean(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else ""
