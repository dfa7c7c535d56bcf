# SPDX-License-Identifier: Apache-2.0
"""Python for guests: this interpreter, and the modules that a program imports.

The modules go into an archive at the place where every Python looks for its library, compiled:
there is little time in an emulated guest.
"""

from __future__ import annotations

import hashlib
import io
import marshal
import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from integration.guest.initramfs import CACHE, shared_libraries

#: Where Python is in the guest; `PYTHONHOME` there.
HOME = "python"
COMMAND = f"PYTHONHOME=/{HOME} /{HOME}/bin/python"
#: What our reservation helper imports.
HELPER_MODULES = ("vhostblk.pr.helper", "vhostblk.pr._connection")
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_ARCHIVE = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
_LIST = """
import sys
for name, module in sys.modules.copy().items():
    file = getattr(module, "__file__", None)
    if file and name != "__main__":
        print(name, file)
"""
_REPOSITORY = Path(__file__).parents[2]


def python_files(*modules: str) -> dict[str, Path]:
    """Return names in the guest and files of this machine: Python with `modules`."""
    interpreter = Path(sys.executable).resolve()
    files = {f"{HOME}/bin/python": interpreter, **shared_libraries(interpreter)}
    sources: dict[str, Path] = {}
    found = _imported(modules)
    # Extension modules inside of packages, which can't be loaded from an archive.
    mixed = {name.partition(".")[0] for name, path in found if path.suffix != ".py" and "." in name}
    for name, path in found:
        place = name.replace(".", "/")
        if path.name == "__init__.py":
            place += "/__init__"
        if path.suffix != ".py":
            package, _, _ = place.rpartition("/")
            files[f"{HOME}/lib/{_VERSION}/{package or 'lib-dynload'}/{path.name}"] = path
            files.update(shared_libraries(path))
        elif name.partition(".")[0] in mixed:
            files[f"{HOME}/lib/{_VERSION}/{place}.py"] = path
        else:
            sources[place] = path
    files[f"{HOME}/lib/{_ARCHIVE}"] = _archive(sources)
    return files


def _imported(modules: tuple[str, ...]) -> list[tuple[str, Path]]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import {', '.join(modules)}{_LIST}"],
        env={**os.environ, "PYTHONPATH": f"{_REPOSITORY}:{sysconfig.get_path('platlib')}"},
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (line.split(" ", 1) for line in done.stdout.splitlines())
    return [(name, Path(path)) for name, path in pairs]


def _archive(sources: dict[str, Path]) -> Path:
    """Return an archive of compiled modules; kept under a name that tells its content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, path in sorted(sources.items()):
            code = marshal.dumps(compile(path.read_bytes(), f"/{name}.py", "exec"))
            # Never held against a source (PEP 552).
            header = MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
            archive.writestr(zipfile.ZipInfo(f"{name}.pyc"), header + code)
    content = buffer.getvalue()
    path = CACHE / f"python-{hashlib.sha256(content).hexdigest()[:12]}.zip"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    return path
