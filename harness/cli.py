# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``postload``: parse and delegate. The only place that exits."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from importlib import import_module
from types import FrameType

import click
from rich.markup import escape

import harness
from harness.commands.options import err
from harness.errors import PostloadError
from harness.qemu.process import sweep_workdirs
from harness.qemu.scope import ProcessScope


def main() -> None:
    """Entry point: errors become one line on stderr and the exit code that the error tree gives them."""
    signal.signal(signal.SIGTERM, _interrupt)
    scope = ProcessScope()  # each run has one of its own in it
    try:
        sweep_workdirs()
        code = cli.main(standalone_mode=False, obj=scope)
    except click.exceptions.Abort:
        code = _say("interrupted", 3)
    except KeyboardInterrupt:
        code = _say("interrupted", 3)
    except click.ClickException as error:
        error.show(sys.stderr)
        code = 2
    except PostloadError as error:
        code = _say(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - only to keep the interpreter's last flush quiet
        code = 3
    except Exception:
        # Python itself would end with 1, which here means findings
        traceback.print_exc()
        code = _say("this is a mistake in postload itself, and says nothing about a device", 3)
    finally:
        scope.close()
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str, code: int) -> int:
    err.print(f"postload: {escape(text)}", soft_wrap=True)
    return code


#: Each command's module and the name that it has there; imported when it is called, which keeps the others out.
_COMMANDS = {
    "matrix": "matrix:matrix",
    "record": "matrix:record",
    "replay": "matrix:replay",
    "qualify": "qualify:qualify",
    "report": "report:report",
    "explain": "explain:explain_command",
    "minimise": "minimise:minimise",
    "bundle": "bundle:bundle",
    "bisect": "bisect:bisect_command",
    "known": "known:known",
    "inspect": "show:inspect",
    "claims": "claims:claims",
    "qemu": "qemu:qemu",
    "host": "facts:host",
    "doctor": "show:doctor",
}


class _Commands(click.Group):
    """A group whose commands are imported when they are wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"harness.commands.{module}"), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(harness.__version__, prog_name="postload")
def cli() -> None:
    """Reload device state many times through QEMU's COLO checkpoint path and name what breaks.

    Exit codes: 0 all ok, 1 findings, 2 bad usage or configuration, 3 the harness or host could not decide,
    4 nothing to run.
    """
