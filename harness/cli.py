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
from click.shell_completion import CompletionItem

import harness
from harness.errors import PostloadError
from harness.text import printable


def main() -> None:
    """Entry point: errors become one line on stderr and the exit code that the error tree gives them."""
    signal.signal(signal.SIGTERM, _interrupt)
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
        code = _say(str(error), error.exit_code)
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


def _say(text: str, code: int) -> int:
    click.echo(f"postload: {printable(text)}", err=True)
    return code


#: Each command: its module, the name that it has there, and its line of the help. The module is imported when the
#: command is called: the help and shell completion, which wait for nobody's keyboard, must not import the program.
COMMANDS = {
    "matrix": ("matrix", "matrix", "Record guests, reload their state, print which devices survive."),
    "record": ("matrix", "record", "Boot one guest and record its phases into a state pack."),
    "replay": ("matrix", "replay", "Reload a recorded state pack."),
    "qualify": (
        "qualify",
        "qualify",
        "Say whether guests of one QEMU or host live on another: go, no-go or unknown, with the reasons.",
    ),
    "report": (
        "report",
        "report",
        "Make the reports of a run anew from its cells.jsonl, also of a run that was killed or still goes on.",
    ),
    "explain": (
        "explain",
        "explain_command",
        "Tell all that is known of CELL: verdict, section, stack, log, smallest case, and what to type next.",
    ),
    "minimise": (
        "minimise",
        "minimise",
        "Make the smallest case of a failing CELL of a run: loads, sections, memory, fields.",
    ),
    "bundle": (
        "bundle",
        "bundle",
        "Write what a bug report needs: smallest case, script to reproduce it, text of the issue.",
    ),
    "bisect": (
        "bisect",
        "bisect_command",
        "Say which version changed a finding: between installed versions and your own builds.",
    ),
    "known": ("known", "known", "Keep the failures that somebody has looked at; --known FILE expects them."),
    "inspect": ("show", "inspect", "Show what a state pack or a migration stream holds, down to the field."),
    "claims": (
        "claims",
        "claims",
        "Answer questions about COLO with numbers from this QEMU: asserts, half checkpoints, framing, frequency.",
    ),
    "qemu": ("qemu", "qemu", "Install QEMUs of several versions side by side, without root and apart from the host's."),
    "devices": ("devices", "devices", "Devices that can be judged, and whether a recipe works."),
    "host": (
        "facts",
        "host",
        "Show what this host is: kernel, CPU, KVM, modules, QEMUs and the virtio features that they offer.",
    ),
    "doctor": ("show", "doctor", "Say what this host has and lacks, and what to install."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"harness.commands.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(n, help=line) for n, (_, _, line) in COMMANDS.items() if n.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(harness.__version__, prog_name="postload")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Reload device state many times through QEMU's COLO checkpoint path and name what breaks.

    Exit codes: 0 all ok, 1 findings, 2 bad usage or configuration, 3 the harness or host could not decide,
    4 nothing to run.
    """
    # late, as the commands are
    from harness.qemu.process import sweep_workdirs
    from harness.qemu.scope import ProcessScope

    sweep_workdirs()
    # each run has a scope of its own within this one
    ctx.obj = ctx.with_resource(ProcessScope())
