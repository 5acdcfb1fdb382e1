# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``postload``: parse and delegate. The only place that exits."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from types import FrameType

import click

import harness
from harness.commands.declared import COMMANDS, Commands
from harness.errors import PostloadError
from harness.text import printable


def main() -> None:
    """Entry point: errors become one line on stderr and the exit code that the error tree gives them."""
    # what a run holds lives long and is in no cycles: looking for such every 700 objects took 3 % of a matrix
    gc.set_threshold(50_000, 20, 20)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _interrupt_anew
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = _say("interrupted", 3)
    except KeyboardInterrupt:
        code = _say("interrupted", 3)
    except click.ClickException as error:
        error.show(sys.stderr)
        code = 2
    except PostloadError as error:
        code = _say(_text(error), error.exit_code)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - only to keep the interpreter's last flush quiet
        code = 3
    except Exception:
        # Python itself would end with 1, which here means findings
        traceback.print_exc()
        code = _say("this is a mistake in postload itself, and says nothing about a device", 3)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _interrupt_anew(lost: sys.UnraisableHookArgs) -> None:
    """An interrupt that comes while an object is finalized is thrown away by Python: let it come once more."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    import _thread
    import threading

    threading.Timer(0.05, _thread.interrupt_main, (signal.SIGTERM,)).start()


def _text(error: PostloadError) -> str:
    from harness.qemu.disturbance import Disturbed
    from harness.report.sentences import disturbed_error_text

    return disturbed_error_text(str(error), error.hindered) if isinstance(error, Disturbed) else str(error)


def _say(text: str, code: int) -> int:
    click.echo(f"postload: {printable(text)}", err=True)
    return code


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(harness.__version__, prog_name="postload")
def cli() -> None:
    """Test which QEMU devices survive COLO checkpoints, and report what breaks.

    Exit codes: 0 everything is ok, 1 there are findings, 2 the command line or a file has a mistake, 3 the program or
    the host could not decide, 4 there was nothing to run.
    """


for _command in COMMANDS:
    cli.add_command(_command)
