# SPDX-License-Identifier: Apache-2.0
"""A copy of the tree to which mutations are applied; its engine is rebuilt incrementally."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shutil
import signal
import subprocess
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fuzz.mutations.mutation import Mutation

ROOT = Path(__file__).parents[2]

#: Files that are not copied: results of builds and tests, and large files that never change.
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".cache", ".hypothesis", ".*_cache", "__pycache__", "build", "*.so",
    "*.egg-info", "_engine.c", "_engine.o",
)  # fmt: skip

_ENGINE = Path("vhostblk/engine")
_LIBRARY = _ENGINE / "_engine.abi3.so"

#: Processes that have this variable in their environment are ended after each run.
_MARKER = "VHOSTBLK_MUTATION"


class BuildError(Exception):
    """The engine can't be compiled; the text is the compiler's output."""


class Engine:
    """Builds the engine of a tree, with an object file for each source."""

    def __init__(self, tree: Path, objects: Path) -> None:
        self._tree = tree
        self._objects = objects
        self._compiler = sysconfig.get_config_var("CC").split()
        before = Path.cwd()
        os.chdir(tree)  # paths in the description are relative
        try:
            builder = runpy.run_path(str(_ENGINE / "build.py"))["ffibuilder"]
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                self._described: Any = builder.distutils_extension(str(objects))
        finally:
            os.chdir(before)
        #: Object file by source, both relative to the tree or absolute.
        self._built: dict[str, Path] = {}

    def build(self, jobs: int) -> None:
        """Build the whole engine."""
        sources: list[str] = self._described.sources
        with ThreadPoolExecutor(jobs) as pool:
            built = pool.map(lambda source: self._compile(source, self._objects), sources)
            self._built = dict(zip(sources, built, strict=True))
        self._link(self._built)

    def rebuild(self, changed: str) -> None:
        """Build the engine with a changed file, until `restore`."""
        other = self._objects / "changed"
        other.mkdir(exist_ok=True)
        mutated = dict(self._built)
        for source in self._built:
            if source == changed or changed in self._headers(source):
                mutated[source] = self._compile(source, other)
        self._link(mutated)

    def restore(self) -> None:
        """Restore the engine that `build` has built."""
        self._link(self._built)

    def _compile(self, source: str, into: Path) -> Path:
        target = into / (Path(source).stem + ".o")
        described = self._described
        self._run(
            [
                *self._compiler, "-fPIC", "-MMD", f"-I{sysconfig.get_path('include')}",
                *(f"-I{directory}" for directory in described.include_dirs),
                *described.extra_compile_args, "-c", source, "-o", str(target),
            ]
        )  # fmt: skip
        return target

    def _link(self, objects: dict[str, Path]) -> None:
        # Not in place: processes that still run have the old file mapped.
        fresh = self._objects / _LIBRARY.name
        self._run(
            [
                *self._compiler, "-shared", *map(str, objects.values()),
                *self._described.extra_link_args, "-o", str(fresh),
            ]
        )  # fmt: skip
        fresh.replace(self._tree / _LIBRARY)

    def _headers(self, source: str) -> set[str]:
        """Return the headers that a source includes, from the compiler's dependency file."""
        noted = self._built[source].with_suffix(".d").read_text()
        return set(noted.replace("\\\n", " ").split())

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, cwd=self._tree, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(done.stderr.strip())


class Outcome:
    """The result of a run of pytest; `code` is None if it took too long."""

    def __init__(self, code: int | None, output: str) -> None:
        self.code = code
        self.output = output


class Scratch:
    """A copy of the tree in a directory of its own."""

    def __init__(self, directory: Path, jobs: int = 1) -> None:
        self.tree = directory / "tree"
        self._directory = directory
        #: The original text of the changed file.
        self._before = ""
        shutil.copytree(ROOT, self.tree, ignore=_LEFT_OUT, symlinks=True)
        cache = ROOT / ".cache"
        if cache.exists():
            (self.tree / ".cache").symlink_to(cache.resolve())
        objects = directory / "objects"
        objects.mkdir()
        self.engine = Engine(self.tree, objects)
        self.engine.build(jobs)

    def apply(self, mutation: Mutation) -> None:
        """Change the tree; raises MutationError, or BuildError with the tree changed."""
        path = self.tree / mutation.file
        self._before = path.read_text()
        path.write_text(mutation.apply(self._before))
        if mutation.is_compiled:
            self.engine.rebuild(mutation.file)

    def restore(self, mutation: Mutation) -> None:
        """Undo `apply`."""
        (self.tree / mutation.file).write_text(self._before)
        if mutation.is_compiled:
            self.engine.restore()

    def run_tests(self, python: str, arguments: Iterable[str], limit: float) -> Outcome:
        """Run pytest for at most `limit` seconds, and leave nothing behind."""
        temporary = self._directory / "t"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(self.tree / ".hypothesis", ignore_errors=True)
        temporary.mkdir()
        marker = f"{os.getpid()}.{id(self)}."
        environment = os.environ | {
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(temporary),
            _MARKER: marker,
        }
        place = f"--basetemp={self._directory / 'b'}"
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", place, *arguments]
        log = self._directory / "log"
        with log.open("w+b") as output:
            process = subprocess.Popen(
                command, cwd=self.tree, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            code: int | None = None
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                pass
            finally:
                end_all(f"{id(self)}.")
                process.wait()
        return Outcome(code, log.read_text(errors="replace"))


def end_all(which: str = "") -> None:
    """End processes that are left from runs of this process; `which`: those of one copy."""
    marker = f"{_MARKER}={os.getpid()}.{which}".encode()
    while found := list(_marked(marker)):
        for number in found:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def _marked(marker: bytes) -> Iterator[int]:
    """Yield the processes whose environment has a line that begins with `marker`."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            is_gone = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        if not is_gone and b"\0" + marker in b"\0" + environment:
            yield int(entry.name)
