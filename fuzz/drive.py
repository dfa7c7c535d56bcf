# SPDX-License-Identifier: Apache-2.0
"""What the Python fuzzers share: their command line, and mutation where there is no Atheris.

`python -m fuzz NAME [libFuzzer's options] CORPUS…` is coverage-guided by Atheris where that is
installed; without it, inputs of the corpus are mutated blindly for `-max_total_time` seconds.
"""

from __future__ import annotations

import importlib
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CORPUS = Path(__file__).parent / "corpus"

#: Numbers that parsers stumble over.
_NUMBERS = (0, 1, 0xFF, 0x200, 1 << 16, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 512, (1 << 64) - 1)


def inputs(name: str) -> list[bytes]:
    """Return the corpus that is kept for a fuzzer, in a stable order."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutate(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds with some bytes changed, moved, lost, or taken from another."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                width = rng.choice((1, 2, 4, 8))
                value = rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)
                data[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))
            case 2:
                del data[place : place + rng.choice((1, 4, 16))]
            case 3:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[place:place] = other[start : start + rng.choice((1, 8, 40))]
            case _:
                data[place : place + 8] = rng.randbytes(8)
    return bytes(data)


def mutations(name: str, seed: int, count: int) -> Iterator[bytes]:
    """Yield the corpus, then `count` mutated inputs, the same ones for the same seed."""
    seeds = inputs(name)
    yield from seeds
    rng = random.Random(seed)
    for _ in range(count):
        yield mutate(rng, seeds)


def main() -> None:
    """Run the fuzzer that the command line names."""
    name = sys.argv[1]
    try:
        import atheris
    except ImportError:
        _blindly(name)
        return
    with atheris.instrument_imports(include=["vhostblk"]):
        one_input = _target(name)
    atheris.Setup([f"fuzz {name}", *sys.argv[2:]], one_input)
    atheris.Fuzz()


def _target(name: str) -> Callable[[bytes], None]:
    found: Callable[[bytes], None] = importlib.import_module(f"fuzz.{name}").one_input
    return found


def _blindly(name: str) -> None:
    one_input, seconds = _target(name), 60.0
    if findings := [path for path in map(Path, sys.argv[2:]) if path.is_file()]:
        for path in findings:
            one_input(path.read_bytes())
        return
    for argument in sys.argv[2:]:
        if argument.startswith("-max_total_time="):
            seconds = float(argument.partition("=")[2])
    end, rng, count = time.monotonic() + seconds, random.Random(), 0
    seeds = inputs(name)
    while time.monotonic() < end:
        data = mutate(rng, seeds)
        try:
            one_input(data)
        except BaseException:
            Path(f"crash-{name}-{count}").write_bytes(data)
            raise
        count += 1
    print(f"{name}: {count} inputs, without Atheris")
