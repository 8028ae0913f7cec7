"""What the two commands have in common: `--version`, and `--layer` as an old name of `--level`."""

from __future__ import annotations

import inspect
import io
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import console


class _Group(TyperGroup):
    """Subcommands that still take `--layer` for `--level`, and say so."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with `--level` in place of `--layer`.

        Raises
        ------
        typer.BadParameter
            If they contain `--layers`, which could mean levels or model layers.
        """
        end = args.index("--") if "--" in args else len(args)
        options = [arg.partition("=")[0] for arg in args[:end]]
        if "--layers" in options:
            raise typer.BadParameter(
                "--layers could mean two things: select levels of the concept hierarchy with "
                "--level, transformer blocks with --model-layers",
                ctx,
            )
        if "--layer" in options:
            console.err().print(
                "--layer is called --level now; transformer blocks are selected with --model-layers"
            )
        named = [
            f"--level{arg.removeprefix('--layer')}" if option == "--layer" else arg
            for arg, option in zip(args, options, strict=False)
        ]
        return super().parse_args(ctx, named + args[end:])


def _show_version(ctx: typer.Context, is_asked: bool) -> None:
    if is_asked:
        console.out().print(ctx.info_name, version("lenscache"))
        raise typer.Exit


def command_group(name: str, text: str, commands: dict[str, tuple[Any, str]]) -> typer.Typer:
    """A command with subcommands.

    Parameters
    ----------
    name : what people type.
    text : its line of help.
    commands : by name, a subcommand and the arguments of its example.
    """
    app = typer.Typer(
        cls=_Group,
        help=text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    for each, (command, example) in commands.items():
        # Line breaks of a docstring are no line breaks of the help.
        paragraphs = (inspect.getdoc(command) or "").split("\n\n")
        app.command(
            each,
            help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs),
            epilog=f"Example: {name} {each} {example}",
        )(command)
    return app


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):
        # A letter that a terminal or a file cannot show is no reason to stop half way.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
