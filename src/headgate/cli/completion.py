"""`headgate completion`: what makes a shell complete commands, options and names?"""

from __future__ import annotations

import os
from typing import Final

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class, split_arg_string

from headgate.cli import output

SHELLS = ("bash", "zsh", "fish")
VARIABLE: Final = "_HEADGATE_COMPLETE"
"""By which a shell asks, of the same command."""

# bash ends a word at : and = as well, which the tags of backends and their weights have: so what is typed is read from the line, and of
# what is offered only that is given back which follows the latest of them.
_BASH: Final = """\
%(complete_func)s() {
    local IFS=$'\\n' breaks="" before="" typed completion type value
    typed=${COMP_LINE:0:COMP_POINT}
    local response=$(env COMP_LINE="$typed" %(complete_var)s=bash_complete $1)
    typed=${typed##*[[:space:]]}
    [[ $COMP_WORDBREAKS == *:* ]] && breaks+=:
    [[ $COMP_WORDBREAKS == *=* ]] && breaks+==
    [[ $breaks ]] && before=${typed%%"${typed##*[$breaks]}"}
    before=${before#--*=}
    COMPREPLY=()
    for completion in $response; do
        IFS=, read -r type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                [[ $value == *= ]] && compopt -o nospace
                COMPREPLY+=("${value#"$before"}")
                ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class Bash(BashComplete):
    """As click's, but for words that have : or = in them."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is typed, and that."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        return (words, "") if line[-1:].isspace() else (words[:-1], words[-1] if words else "")


def register() -> None:
    """Have click complete for bash by our own."""
    add_completion_class(Bash)


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
    from headgate.cli.main import headgate

    register()
    completes = get_completion_class(shell)
    assert completes is not None  # click has these three
    output.say(completes(headgate, {}, "headgate", VARIABLE).source().strip())
