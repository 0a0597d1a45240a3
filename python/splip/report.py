"""What a verb found, for programs: with ``--json`` one JSON object on stdout, and nothing else there."""

import json
from collections.abc import Iterator
from typing import Any, TextIO


class Report(dict[str, Any]):
    """An object of JSON, and the verb's exit code. A value that is an iterator becomes a list, however long it is."""

    def __init__(self, code: int = 0, **values: Any) -> None:
        super().__init__(values)
        self.code = code


def write(report: dict[str, Any], file: TextIO) -> None:
    """Print an object, members and what iterators give on lines of their own; an error before the first line leaves none."""
    lines = _lines(report)
    first = next(lines)
    file.write(first)
    file.writelines(lines)
    file.flush()


def _lines(report: dict[str, Any]) -> Iterator[str]:
    opened = {name: iter(value) for name, value in report.items() if isinstance(value, Iterator)}
    begun = {name: next(values, _END) for name, values in opened.items()}
    before = "{\n"
    for name, value in report.items():
        yield f"{before} {json.dumps(name)}: "
        before = ",\n"
        if name not in opened:
            yield json.dumps(value, indent=1).replace("\n", "\n ")
            continue
        mark, one = "[\n  ", begun[name]
        while one is not _END:
            yield mark + json.dumps(one)
            mark, one = ",\n  ", next(opened[name], _END)
        yield "[]" if mark[0] == "[" else "\n ]"
    yield "\n}\n" if report else "{}\n"


_END = object()
