# SPDX-License-Identifier: GPL-2.0-or-later
"""A plugin of pytest: the cells of a matrix as tests.

::

    pytest -p harness.pytest_plugin --postload-device ahci --postload-machine q35
    pytest -p harness.pytest_plugin --postload-device all -n 4 -k "bound and not leak"

It does nothing unless one of its options is given, and imports nothing of the program before: pytest loads it wherever
the package is installed. ``--postload-NAME`` is option ``--NAME`` of ``postload matrix``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.commands.celltests import CellResult, CellTests
    from harness.results.key import CellKey

#: The options of ``postload matrix`` that take a value, and those that do not.
VALUES = (
    "qemu", "machine", "device", "phase", "schedule", "migration", "guest-mode", "loads", "run-ms", "confirm", "jobs",
    "budget", "accel", "guest", "cpus", "profiles", "known", "out",
)  # fmt: skip
FLAGS = ("reset", "quick", "processes", "fresh")
NAME = "postload"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup(NAME, "QEMU devices under COLO checkpoints; see postload matrix --help")
    for name in VALUES:
        text = f"--{name} of postload matrix"
        group.addoption(f"--postload-{name}", action="append", default=[], metavar="VALUE", help=text)
    for name in FLAGS:
        group.addoption(f"--postload-{name}", action="store_true", help=f"--{name} of postload matrix")


def pytest_configure(config: pytest.Config) -> None:
    marker = (
        "postload(qemu, machine, device, phases, lane): a cell of a matrix, made from --postload-device and the like"
    )
    config.addinivalue_line("markers", marker)
    words = _words(config)
    if words:
        config.pluginmanager.register(CellsPlugin(config, words), f"{NAME}-cells")


def _words(config: pytest.Config) -> list[str]:
    """The command line of ``postload matrix`` that is asked for; empty where none is."""
    given = {name: config.getoption(f"postload_{name.replace('-', '_')}") for name in (*VALUES, *FLAGS)}
    words = [f"--{name}={value}" for name in VALUES for value in given[name]]
    return words + [f"--{name}" for name in FLAGS if given[name]]


class KnownIssue(Exception):
    """A cell fails as it is known to."""


class CellsPlugin:
    """The cells of one session; registered only where they were asked for.

    Workers of pytest-xdist share a folder, which the one process that starts them makes and removes.
    """

    def __init__(self, config: pytest.Config, words: list[str]) -> None:
        self._words = words
        self._config = config
        given: dict[str, Any] = getattr(config, "workerinput", {})
        self._worker = bool(given)
        self._workers = int(given.get("workercount", 1))
        self._folder = Path(given[NAME]["folder"] if given else tempfile.mkdtemp(prefix="postload-pytest-"))
        #: No file was named: the cells are all there is.
        self.alone = given[NAME]["alone"] if given else config.args_source is not pytest.Config.ArgsSource.ARGS
        self._tests: CellTests | None = None

    @property
    def tests(self) -> CellTests:
        if self._tests is None:
            from harness.commands.celltests import CellTests
            from harness.errors import PostloadError

            try:
                self._tests = CellTests(self._words, self._folder, self._workers)
            except PostloadError as error:
                raise pytest.Collector.CollectError(f"postload: {error}") from error
        return self._tests

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """A worker of pytest-xdist is about to be started."""
        node.workerinput[NAME] = {"folder": str(self._folder), "alone": self.alone}

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if isinstance(collector, pytest.Session) and report.passed:
            cells = Matrix.from_parent(collector, name=NAME, nodeid=NAME, plugin=self)
            report.result = [cells] if self.alone else [*report.result, cells]
        return report

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        cells = [item.key for item in session.items if isinstance(item, CellItem)]
        if cells:
            self.tests.select(cells)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if isinstance(item, CellItem) and item.result is not None:
            # a cell is waited for while its guest is judged, with all others; what it took is known by itself
            report.duration = item.result.seconds if call.when == "call" else 0.0
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Nothing is judged any more when the reports are put together."""
        if self._tests is not None:
            self._tests.close()

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        from harness.commands.celltests import report_parts

        paths = report_parts(self._folder, self._words)
        if paths:
            terminalreporter.write_line(f"postload: reports in {paths[0].parent}")

    def pytest_unconfigure(self) -> None:
        if self._tests is not None:
            self._tests.close()
        if not self._worker:
            shutil.rmtree(self._folder, ignore_errors=True)


class Matrix(pytest.Collector):
    """All cells of a command line."""

    def __init__(self, plugin: CellsPlugin, **more: Any) -> None:
        super().__init__(**more)
        self.plugin = plugin

    def collect(self) -> Iterator[pytest.Item]:
        for key in self.plugin.tests.cells:
            yield CellItem.from_parent(self, name=str(key), key=key)


class CellItem(pytest.Item):
    """A cell. It is judged in its setup, so that what nobody could decide is an error and no failure."""

    parent: Matrix

    def __init__(self, key: CellKey, **more: Any) -> None:
        super().__init__(**more)
        self.key = key
        self.result: CellResult | None = None
        asked = {"machine": key.machine, "device": key.device, "phases": "+".join(key.phases), "lane": key.lane}
        self.add_marker(pytest.mark.postload(qemu=str(key.route), **asked))
        self.extra_keyword_matches.update((*asked.values(), *key.phases))

    def setup(self) -> None:
        from harness.commands.celltests import Came

        self.result = result = self.parent.plugin.tests.result(self.key)
        if result.facts:
            self.add_report_section("setup", NAME, result.facts)
        if result.came is Came.UNDECIDED:
            raise NotDecided(result.text)
        if result.came in (Came.KNOWN, Came.GONE):
            self.add_marker(pytest.mark.xfail(raises=KnownIssue, strict=True, reason=result.text))

    def runtest(self) -> None:
        from harness.commands.celltests import Came

        assert self.result is not None
        if self.result.came is Came.SKIPPED:
            pytest.skip(self.result.text)
        if self.result.came is Came.KNOWN:
            raise KnownIssue(self.result.text)
        if self.result.came is Came.FAILED:
            raise CellFailed(self.result.text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was seen, and not where this plugin says so."""
        from harness.errors import PostloadError

        if isinstance(excinfo.value, CellFailed | NotDecided | PostloadError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"cell {self.name}"  # a name by itself has its dots replaced


class CellFailed(Exception):
    """A cell has a finding that is not known."""


class NotDecided(Exception):
    """The host, or this program, kept a cell from being judged."""
