"""The law of what commands print: it fits the terminal, and its last line is a command that can be typed."""

import shlex

from rich.cells import cell_len


def fits(text, width=80):
    """Whether no line is wider than the terminal, but for a single word that is."""
    lines = [line.removesuffix(" \\") for line in text.splitlines()]
    return all(cell_len(line) <= width or len(line.split()) == 1 for line in lines)


def next_words(text):
    """The words of the command that the last lines name, as a shell reads them, from the name of the command on."""
    begin = text.rindex("\nnext: ") if "\nnext: " in text else 0
    words = shlex.split(text[begin:].strip().removeprefix("next: ").replace(" \\\n", " "))
    return words[words.index("diffusion") + 1 :]
