# SPDX-License-Identifier: GPL-2.0-or-later
"""XML from anybody, as a tree that knows its lines and what was read of it.

A domain needs no DTD, so a file with one is refused: that leaves no entity to expand and no file to fetch. What nobody
asked an element for is told (:meth:`Element.unread`), so that no part of a domain is lost in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from harness.errors import UsageError

#: A domain with a hundred disks has some 60 kB.
MOST_BYTES = 4 << 20
MOST_ELEMENTS = 20_000
DEEPEST = 32
#: Of options that are passed on to QEMU as they stand.
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

#: libvirt's units of memory, see virScaleInteger in src/util/virutil.c: bytes for each.
UNITS: dict[str, int] = {"b": 1, "byte": 1, "bytes": 1} | {
    spelling.lower(): base**power
    for power, letter in enumerate("KMGTPE", start=1)
    for spelling, base in ((letter, 1024), (f"{letter}iB", 1024), (f"{letter}B", 1000))
}


@dataclass(slots=True, eq=False)
class Element:
    """One element. Completing a domain adds to it; reading it marks what was read.

    :param source: of the whole text, for errors
    :param text: between its tags, without that of its children
    """

    tag: str
    source: str
    line: int
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)
    text: str = ""
    _read: set[str] = field(default_factory=set)
    _passed_over: bool = False

    def get(self, name: str, usual: str = "") -> str:
        """An attribute, or what it usually is."""
        self._read.add(name)
        return self.attributes.get(name, usual)

    def choice(self, name: str, known: Collection[str], usual: str = "") -> str:
        """An attribute that is one of several words, or what it usually is.

        :raises UsageError: it is none of them
        """
        if (word := self.get(name, usual)) not in known:
            raise self.wrong(f"{name}={word!r}: expected one of {', '.join(filter(None, known))}")
        return word

    def all(self, tag: str) -> list[Element]:
        """The children of that name, in their order."""
        self._read.add(f"<{tag}>")
        return [child for child in self.children if child.tag == tag]

    def first(self, tag: str) -> Element | None:
        """The child of that name, None where there is none."""
        return next(iter(self.all(tag)), None)

    def at(self, path: str) -> Element:
        """What stands at a path such as ``os/loader``; an empty element where nothing does."""
        here = self
        for tag in path.split("/"):
            here = here.first(tag) or Element(tag, here.source, here.line)
        return here

    def has(self, path: str) -> bool:
        """Whether anything stands at a path."""
        here: Element | None = self
        for tag in path.split("/"):
            here = here.first(tag) if here else None
        return here is not None

    def words(self) -> str:
        """Its text, without the space around it."""
        self._read.add("text")
        return self.text.strip()

    def number(self, name: str) -> int | None:
        """An attribute that is a number, decimal, hexadecimal or octal as C has it; None where it is not there.

        :raises UsageError: it is none
        """
        return None if not (text := self.get(name)) else self._number(text, f"{name}=")

    def size(self, usual_unit: str = "KiB") -> int:
        """Its text as bytes, in its ``unit``.

        :raises UsageError: no number, or no unit of libvirt's
        """
        unit = self.get("unit", usual_unit)
        if unit.lower() not in UNITS:
            raise self.wrong(f"unit={unit!r}: expected one such as KiB, MiB or GiB")
        return self._number(self.words(), "") * UNITS[unit.lower()]

    def _number(self, text: str, name: str) -> int:
        try:
            return int(text, 8 if text.startswith("0") and text.isdecimal() else 0)
        except ValueError:
            raise self.wrong(f"{name}{text!r}: expected a number") from None

    def yes(self, name: str) -> bool | None:
        """An attribute that is ``on``, ``yes``, ``off`` or ``no``; None where it is not there.

        :raises UsageError: it is none of these
        """
        text = self.get(name)
        if text not in ("", "on", "yes", "off", "no"):
            raise self.wrong(f"{name}={text!r}: expected on or off, yes or no")
        return text in ("on", "yes") if text else None

    def add(self, tag: str, /, **attributes: str) -> Element:
        """A new last child, at this element's line."""
        child = Element(tag, self.source, self.line, attributes)
        self.children.append(child)
        return child

    def pass_over(self) -> None:
        """Nobody knows what it is: all of it is unread, whatever was asked of it."""
        self._passed_over = True

    def wrong(self, message: str) -> UsageError:
        """An error that names file, line and element."""
        return UsageError(f"{self.source}:{self.line}: <{self.tag}>: {message}")

    def unread(self, path: str = "") -> Iterator[tuple[str, int]]:
        """What nobody asked for, as paths such as ``devices/disk@model`` and ``devices/lease``, each with its line."""
        if self._passed_over:
            yield path, self.line
            return
        for name in self.attributes:
            if name not in self._read:
                yield f"{path}@{name}", self.line
        for child in self.children:
            below = f"{path}/{child.tag}" if path else child.tag
            if f"<{child.tag}>" in self._read:
                yield from child.unread(below)
            else:
                yield below, child.line


def parse(text: str, source: str) -> Element:
    """The root of an XML text.

    :param source: what errors call it
    :raises UsageError: no XML, or XML that no domain needs: a DTD, more than 4 MiB, 20,000 elements, or 32 levels
    """
    if len(text) > MOST_BYTES:
        raise UsageError(f"{source}: {len(text)} characters: expected a libvirt domain of at most {MOST_BYTES}")
    reader = _TreeReader(source)
    try:
        reader.parser.Parse(text.encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError as error:
        raise UsageError(f"{source}:{error.lineno}: no XML: {expat.ErrorString(error.code)}") from None
    return reader.root


def _named(name: str) -> str:
    """A name as libvirt writes it, whatever prefix this text has for QEMU's part of a domain."""
    return name.replace(f"{QEMU_NAMESPACE}}}", "qemu:")


class _TreeReader:
    """Makes elements of what expat tells. Comments and processing instructions are passed over."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.parser = expat.ParserCreate("utf-8", "}")
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype
        self._open: list[Element] = []
        self._count = 0
        self.root = Element("", source, 1)

    def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
        line = self.parser.CurrentLineNumber
        names = {_named(name): value for name, value in attributes.items()}
        element = Element(_named(tag), self.source, line, names)
        self._count += 1
        if self._count > MOST_ELEMENTS:
            raise element.wrong(f"more than {MOST_ELEMENTS} elements: expected a libvirt domain")
        if len(self._open) == DEEPEST:
            raise element.wrong(f"more than {DEEPEST} elements within each other: expected a libvirt domain")
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, tag: str) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        self._open[-1].text += text

    def _doctype(self, name: str, system_id: str | None, public_id: str | None, has_subset: bool) -> None:
        line = self.parser.CurrentLineNumber
        raise UsageError(f"{self.source}:{line}: a DTD, which no libvirt domain has: expected <domain> without DOCTYPE")
