"""ZNN's ``.znn``: blocks ``nodes NAME`` and ``edges NAME`` of ``key value`` lines. It holds no weights.

Only the first two words of a line count, as in ZNN; settings of training (``init``, ``eta``, ...) are passed over.
"""

from __future__ import annotations

import os
from pathlib import Path

from znni.errors import FormatError
from znni.formats.description import Description
from znni.formats.text import numbered_lines
from znni.formats.znn_blocks import Block, chain_of_blocks


def read_znn(path: str | os.PathLike) -> Description:
    """The network of a ``.znn`` file, without weights.

    Raises
    ------
    FormatError
        Naming the file and the line or the block.
    """
    path = Path(path)
    in_channels, steps = chain_of_blocks(str(path), _blocks(path))
    unbiased = frozenset(step.node.name for step in steps if step.target.type == "sum")
    return Description(tuple(step.node for step in steps), in_channels, unbiased=unbiased)


def _blocks(path: Path) -> list[Block]:
    blocks, named = [], set()
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        word, _, rest = line.partition(" ")
        if not rest.split():
            raise FormatError(f"{where}: expected a key and a value, got {line!r}")
        value = rest.split()[0]
        if word in ("nodes", "edges"):
            if (word, value) in named:
                raise FormatError(f"{where}: {word} {value} are defined a second time")
            named.add((word, value))
            blocks.append(Block(word, value, {}, where))
        elif not blocks:
            raise FormatError(f"{where}: {word!r} stands before any nodes or edges block")
        elif word in blocks[-1].options:
            raise FormatError(f"{where}: {blocks[-1].group} {blocks[-1].name} have a second {word}")
        else:
            blocks[-1].options[word] = value
    if not blocks:
        raise FormatError(f"{path} is empty; a .znn file holds nodes and edges blocks")
    return blocks
