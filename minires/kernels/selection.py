"""Choice by measurement: how long each kernel takes here, in a table that is kept on disk.

`minires kernels tune` (or `mr.tune`) measures every kernel that may be chosen, once for each pass
of each convolution of a network, and writes what it found to the user's cache folder. From then on
the fastest is chosen for the geometries in the table, and for others by the registered conditions.

    MINIRES_TUNING=off          the conditions alone
    MINIRES_TUNING=table.json   this table and no other; `tune` writes to it

A table belongs to one machine (processor, vector width and threads, or GPU, driver and capability)
and to one text of the kernels. One that does not fit, or cannot be read, is ignored with a warning.

Equal runs choose equally: a table is read once per process and number of threads, so that what
another process writes changes nothing in the middle of a run, and a run's config.json has the
table's hash. What `use`, MINIRES_KERNELS or algorithm="exact" say goes before the table.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from minires.kernels import environment
from minires.kernels.host import processor_name, vector_bytes
from minires.kernels.threads import num_threads

KIND, FORMAT = "minires kernels tune", 1

MARGIN = 0.05
"""How much faster than the kernel of the conditions another must be: less may be chance."""


class TuningWarning(UserWarning):
    """A table of measurements is not used, and why."""


@dataclass(frozen=True)
class Entry:
    """What was measured of one operation on one geometry.

    seconds: medians by kernel. refused: why a kernel was not timed, such as a wrong result.
    """

    seconds: Mapping[str, float]
    refused: Mapping[str, str] = field(default_factory=dict)

    def choose(self, usable: Collection[str], default: str) -> str | None:
        """The fastest of these kernels, or `default` if that is as fast within MARGIN.

        None if the table cannot tell: it has not seen `default`, or timed none of these.
        """
        known = {name: s for name, s in self.seconds.items() if name in usable}
        if not known or default not in {*self.seconds, *self.refused}:
            return None
        fastest = min(known, key=lambda name: known[name])
        if known.get(default, float("inf")) <= known[fastest] * (1 + MARGIN):
            return default
        return fastest


@dataclass(frozen=True)
class Table:
    """Measurements of one backend on one machine.

    facts: what they depend on (`facts_of`). entries: by `key_of`.
    """

    facts: Mapping[str, Any]
    entries: Mapping[str, Entry]
    path: Path | None = None

    @property
    def digest(self) -> str:
        """A hash of what decides: equal tables choose equally."""
        text = json.dumps({key: dict(e.seconds) for key, e in sorted(self.entries.items())})
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        entries = {
            key: {"seconds": dict(e.seconds), **({"refused": dict(e.refused)} if e.refused else {})}
            for key, e in sorted(self.entries.items())
        }
        return {"kind": KIND, "format": FORMAT, "facts": dict(self.facts), "entries": entries}

    @classmethod
    def of(cls, document: Any, path: Path | None = None) -> Table:
        """The table of a document. Raises ValueError if it is none."""
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise ValueError("it is not a table of `minires kernels tune`")
        if document.get("format") != FORMAT:
            raise ValueError(f"it has format {document.get('format')!r}, not {FORMAT}")
        try:
            entries = {
                str(key): Entry(
                    {str(k): _seconds(s) for k, s in one["seconds"].items()},
                    {str(k): str(why) for k, why in one.get("refused", {}).items()},
                )
                for key, one in document["entries"].items()
            }
            return cls(dict(document["facts"]), entries, path)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from None


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"seconds are positive numbers, got {value!r}")
    return float(value)


def key_of(operation: str, dtype: str, geometry: Any) -> str:
    """`conv2d float32 16x64x56x56 * 64x64x3x3 padding 1x1`."""
    return f"{operation} {dtype} {geometry}"


# -- what a table belongs to -----------------------------------------------------------------------


def facts_of(backend: str) -> dict[str, Any]:
    """The machine and the kernels that a measurement of this backend is of."""
    packages = ("cupy",) if backend == "cuda" else ("numpy", "numba")
    return {
        "backend": backend,
        **_machine(backend),
        **{name: _version(name) for name in packages},
        "kernels": kernels_digest(backend),
    }


def _machine(backend: str) -> dict[str, Any]:
    """What computes: the processor with its threads, or the device of CuPy; the emulator, where
    CuPy is not in use."""
    if backend == "cpu":
        return {
            "processor": processor_name(),
            "vector_bytes": vector_bytes(),
            "threads": num_threads(),
        }
    from minires.kernels.cuda.launch import cupy_in_use

    cupy = cupy_in_use()
    if cupy is None:
        return {"gpu": "emulator", "processor": processor_name()}
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "gpu": properties["name"].decode(),
        "capability": f"{properties['major']}.{properties['minor']}",
        "driver": int(cupy.cuda.runtime.driverGetVersion()),
    }


def _version(package: str) -> str | None:
    loaded = sys.modules.get(package)
    if loaded is not None:
        return str(loaded.__version__)
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache
def kernels_digest(backend: str) -> str:
    """A hash of the text of this backend's kernels and of what goes with them."""
    folder = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*.py"), *(folder / backend).rglob("*")]):
        if path.suffix in (".py", ".cu", ".cuh"):
            found.update(path.relative_to(folder).as_posix().encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def table_path(backend: str) -> Path:
    """Where this machine's table is, or would be.

    Raises ValueError if MINIRES_TUNING turns tables off.
    """
    given = environment.tuning()
    if given is False:
        raise ValueError(f"tune: {environment.TUNING}=off: there is no table to write to; unset it")
    if isinstance(given, Path):
        return given
    name = hashlib.sha256(repr(sorted(_machine(backend).items())).encode()).hexdigest()[:12]
    return environment.cache_folder() / "tuning" / f"{backend}-{name}.json"


# -- reading ---------------------------------------------------------------------------------------

_tables: dict[tuple[str, int], Table | None] = {}


def table(backend: str) -> Table | None:
    """The table that decides on this backend and number of threads; None if there is none."""
    key = backend, num_threads()
    if key not in _tables:
        _tables[key] = _load(backend)
    return _tables[key]


def forget() -> None:
    """Read the tables again when they are next needed."""
    _tables.clear()


def entry(operation: str, backend: str, geometry: Any, dtype: str) -> Entry | None:
    """What the table has on this call; None if nothing."""
    found = table(backend)
    return None if found is None else found.entries.get(key_of(operation, dtype, geometry))


def _load(backend: str) -> Table | None:
    given = environment.tuning()
    if given is False:
        return None
    path = table_path(backend)
    if given is True and not path.exists():
        return None
    try:
        found = _read(path)
        if found.facts.get("backend") != backend:
            return None  # of the other backend: a file holds one
        _check_facts(found, facts_of(backend))
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{path} is not used to choose kernels: {error}. Write it anew with `minires kernels "
            f"tune`, or set {environment.TUNING}=off",
            TuningWarning,
            stacklevel=2,
        )
        return None
    return found


def _read(path: Path) -> Table:
    """The table in a file. Raises OSError or ValueError."""
    try:
        return Table.of(json.loads(path.read_text(encoding="utf-8")), path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"it is damaged ({error})") from None
    except FileNotFoundError:
        raise ValueError("there is no such file") from None


def _check_facts(found: Table, now: Mapping[str, Any]) -> None:
    """Raises ValueError if the table is of another machine or other kernels."""
    for name in sorted({*found.facts, *now}):
        was, is_now = found.facts.get(name), now.get(name)
        if was != is_now:
            raise ValueError(f"it was measured with {name} {was!r}, here it is {is_now!r}")


# -- writing ---------------------------------------------------------------------------------------


def store(backend: str, entries: Mapping[str, Entry], path: Path) -> Table:
    """Add entries to the table in a file, which is made if it is missing.

    What the file has of the same machine and kernels is kept, anything else is replaced. Processes
    that write at one time take turns, and a reader sees a whole table. Raises OSError if the file
    cannot be written.
    """
    from minires.files import atomic_write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    facts = facts_of(backend)
    with _alone(path):
        known: dict[str, Entry] = {}
        with suppress(OSError, ValueError):
            old = _read(path)
            _check_facts(old, facts)
            known.update(old.entries)
        made = Table(facts, known | dict(entries), path)
        atomic_write_text(path, json.dumps(made.document(), indent=1) + "\n")
    return made


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is inside for the same path; on Windows they are not kept apart."""
    if os.name == "nt":
        yield
        return
    import fcntl

    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
