"""Records in Parquet files."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from t5x_lite.data.file_bytes import file_version
from t5x_lite.data.file_source import FileSource, Found, Keys, MissingKey, normal_keys, pick
from t5x_lite.data.files import BadRecords, cache_folder, local_copy, version_of, written_whole
from t5x_lite.data.source import Record, digest, hash64
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count, Fraction, Positive


class Parquet(FileSource):
    """Parquet files, by pyarrow. Row groups have no random access, so they are unpacked: in memory
    while they are small, else into Arrow files in the cache folder, which are mapped.

    keys: {record key: column}; a string means {"text": string}; None gives all columns.
    Other arguments and errors as of `FileSource`. All rows of a file without such a column, with
    two of one name, or with another kind of value in it than the first file (string, large_string
    and a dictionary of strings are one kind, and so are all integers), are bad, and so is a row
    with no value.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        keys: Keys = "text",
        held_out: Fraction = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_bad_records: Count = 0,
        max_record_bytes: Positive = 10_000_000,
    ):
        self.keys = normal_keys(keys)
        super().__init__(files, held_out, validation_files, max_bad_records, max_record_bytes)

    def scan(self, file: int, bad: BadRecords) -> Found:
        path = self.paths[file]
        try:
            names, types, count = self._types(file)
        except (OSError, ValueError) as e:  # pyarrow's errors are of these classes
            if isinstance(e, OSError) and e.errno:
                raise UserError(f"{path} can't be read now: {e}.") from e
            bad.add(f"{path} is no Parquet file, or a torn one ({_line(e)}); fetch it again.")
            return Found.of([])
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            bad.add(f"{path}: two columns of the name {twice[0]!r}; rename one.", max(count, 1))
            return Found.of([])
        if problem := self._other_schema(file, types):
            bad.add(f"{path}: {problem}", max(count, 1))
            return Found.of([])
        try:
            table = self._table(file)
        except (OSError, ValueError, _pyarrow().ArrowException) as e:
            bad.add(
                f"{path} can't be unpacked ({_line(e)}); fetch or write it again.", max(count, 1)
            )
            return Found.of([])
        rows: list[tuple[int, int, int, int]] = []
        row = 0
        for batch in table.to_batches(max_chunksize=1024):
            for record in _records(batch):
                try:
                    if isinstance(record, MissingKey):
                        raise record
                    content = _content(pick(record, self.keys))
                    if len(content) > self.max_record_bytes:
                        raise MissingKey(
                            f"a record of {len(content):,} bytes, expected at most "
                            f"{self.max_record_bytes:,}; split it, or raise max_record_bytes"
                        )
                    rows.append((hash64(content), len(content), row, row + 1))
                except MissingKey as e:
                    bad.add(f"{path} row {row}: {e}.")
                row += 1
        if not row:
            bad.add(f"{path} has no rows; remove it, or fetch it again.")
        return Found.of(rows)

    def read(self, file: int, begin: int, end: int) -> Record:
        row = {name: column[begin].as_py() for name, column in self._columns(file)}
        return pick(row, self.keys)

    def content(self, file: int, begin: int, end: int) -> bytes:
        try:
            return _content(self.read(file, begin, end))
        except UserError:
            raise
        except Exception:  # of a file that has become another: no such row or column, or no Parquet
            return b""

    def place(self, file: int, begin: int) -> str:
        return f"row {begin}"

    def _other_schema(self, file: int, types: dict[str, str]) -> str | None:
        first = next(iter(self._first_types.values()), types)
        wanted = list(first) if self.keys is None else [_column(k) for k in self.keys.values()]
        for name in wanted:
            if name not in types:
                found = ", ".join(f"{n} ({t})" for n, t in types.items())
                return f"no column {name!r}, found {found}; set Parquet.keys, or leave it out."
            if len({types[name], first.get(name, types[name])} - {"null"}) > 1:
                return (
                    f"column {name!r} is {types[name]}, expected {first[name]} as in "
                    f"{self.paths[next(iter(self._first_types))]}; leave the file out."
                )
        self._first_types.setdefault(file, types)
        return None

    @functools.cached_property
    def _first_types(self) -> dict[int, dict[str, str]]:
        return {}

    # ---- pyarrow

    def _forget_data(self) -> None:
        super()._forget_data()
        self._tables: dict[int, Any] = {}
        self._columns = functools.lru_cache(maxsize=1024)(
            lambda file: list(zip(self._table(file).column_names, self._table(file).columns,
                                  strict=True))
        )  # fmt: skip

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k not in ("_tables", "_columns")}

    def _types(self, file: int) -> tuple[list[str], dict[str, str], int]:
        """The names of the columns, the kinds of their values, and the number of rows."""
        arrow = _pyarrow()
        with arrow.parquet.ParquetFile(local_copy(self.paths[file])) as parquet:
            schema = parquet.schema_arrow
            types = {field.name: _kind(arrow, field.type) for field in schema}
            return list(schema.names), types, parquet.metadata.num_rows

    def _table(self, file: int) -> Any:
        """Of the process that indexed the file, what it was then; a worker reads it anew."""
        if file not in self._tables:
            path = self.paths[file]
            try:
                if file_version(local_copy(path)) != self._versions[file]:
                    self._suspect.add(file)
            except OSError as e:
                raise UserError(f"{path} can't be read now: {e}.") from e
            self._tables[file] = self._read_table(file)
        return self._tables[file]

    def _read_table(self, file: int) -> Any:
        arrow, path = _pyarrow(), local_copy(self.paths[file])
        columns = self.keys and sorted({_column(k) for k in self.keys.values()})
        if self._in_memory:
            return arrow.parquet.read_table(path, columns=columns, partitioning=None)
        unpacked = cache_folder("unpacked") / f"{digest(version_of(path), columns)}.arrow"
        if not unpacked.exists():
            parquet = arrow.parquet.ParquetFile(path)
            batches = parquet.iter_batches(columns=columns)
            with written_whole(unpacked) as temporary:
                writer = None
                for batch in map(_dense, batches):
                    writer = writer or arrow.ipc.new_file(temporary, batch.schema)
                    writer.write_batch(batch)
                if writer is None:
                    return arrow.parquet.read_table(path, columns=columns)
                writer.close()
        return arrow.ipc.open_file(arrow.memory_map(str(unpacked))).read_all()


def _content(record: Record) -> bytes:
    """What is hashed of a record."""
    return repr(record).encode(errors="surrogatepass")


def _records(batch: Any) -> Iterator[Record | MissingKey]:
    """The rows of a record batch; of one that Python has no value for, what is wrong with it."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError, LookupError):  # no UTF-8, years, nanoseconds, time zones
        pass
    for row in range(batch.num_rows):
        record, name = {}, None
        try:
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                record[name] = column[row].as_py()
            yield record
        except UnicodeDecodeError as e:
            yield MissingKey(f"{name!r} is not UTF-8 ({e.reason}); write the file again")
        except (ValueError, OverflowError, LookupError) as e:
            yield MissingKey(
                f"{name!r} can't be read ({_line(e)}); cast the column, or leave it out"
            )


def _kind(arrow: Any, type: Any) -> str:
    """An Arrow type without what makes no difference to a value: widths, units, encodings."""
    is_a = arrow.types
    if is_a.is_dictionary(type):
        return _kind(arrow, type.value_type)
    name = str(type)
    if name in ("string", "large_string", "string_view"):
        return "string"
    if "binary" in name.split("[")[0]:
        return "binary"
    for kind in ("integer", "floating", "decimal", "timestamp", "date", "time", "duration"):
        if getattr(is_a, f"is_{kind}")(type):
            return kind
    if is_a.is_map(type):
        return f"map of {_kind(arrow, type.key_type)}: {_kind(arrow, type.item_type)}"
    if is_a.is_struct(type):
        fields = sorted(f"{field.name}: {_kind(arrow, field.type)}" for field in type)
        return f"struct of {', '.join(fields)}"
    if is_a.is_nested(type) and hasattr(type, "value_type"):
        return f"list of {_kind(arrow, type.value_type)}"
    return name


def _dense(batch: Any) -> Any:
    """Without dictionaries: an Arrow file can't hold one that differs from batch to batch."""
    for i, field in enumerate(batch.schema):
        if hasattr(batch.column(i), "dictionary_decode"):
            batch = batch.set_column(i, field.name, batch.column(i).dictionary_decode())
    return batch


def _column(path: str) -> str:
    return path.split("/")[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as e:
        raise UserError(f"Parquet needs pyarrow ({e}); pip install 't5x_lite[data]'.") from e
    return pyarrow
