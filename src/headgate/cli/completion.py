"""`headgate completion`: what makes a shell complete commands, options and names?"""

from __future__ import annotations

import click

from headgate.cli import output

SHELLS = ("bash", "zsh", "fish")


@click.command
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete what you type.

    Commands, options, and the names of instances, and of backends and endpoints of the instance that runs.

    \b
    Examples:
      source <(headgate completion bash)
      headgate completion bash > ~/.local/share/bash-completion/completions/headgate
      headgate completion zsh > ~/.zfunc/_headgate
      headgate completion fish > ~/.config/fish/completions/headgate.fish
    """
    from click.shell_completion import get_completion_class

    from headgate.cli.main import headgate

    completes = get_completion_class(shell)
    assert completes is not None  # click has these three
    output.say(completes(headgate, {}, "headgate", "_HEADGATE_COMPLETE").source().strip())
