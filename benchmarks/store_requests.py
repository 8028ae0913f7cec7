"""What a store is made of: how many objects it has, and how many requests it takes to make it.

    rows and blocks of each round --expected_objects--> objects
                                  --expected_requests--> PUT, GET, HEAD and LIST of all workers

Objects are exact: they follow from `lenscache.store.layout`. Requests are those of zarr 3.1 as
counted against a real server (`benchmarks/scaling.py`), listed here by what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lenscache.extract.batch_check import VERIFIED_ROWS
from lenscache.store.header import StoreHeader
from lenscache.store.layout import COLUMN_CHUNK_ROWS, vector_arrays

Engine = Literal["partitions", "ray"]
"""How workers come by their blocks: each has its share, or they are handed out one by one."""

_SAMPLE_COLUMNS, _LABEL_COLUMNS, _HIERARCHY_COLUMNS = 8, 3, 4
_COLUMNS = _SAMPLE_COLUMNS + _LABEL_COLUMNS
_WRITES_OF_ROUND_ATTRIBUTES = 3  # on creation, with the request, and with the verification


class RoundSize(NamedTuple):
    """A round in numbers."""

    rows: int
    labels: int
    block_rows: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.block_rows)


class Requests(NamedTuple):
    """Requests to an object store."""

    put: int
    get: int
    head: int
    list: int


def expected_objects(
    header: StoreHeader, rounds: Sequence[RoundSize], *, concepts: int, links: int
) -> int:
    """Objects of a complete store.

    Parameters
    ----------
    rounds : one a level of abstraction.
    concepts, links : of the pack, and of its children to their parents.
    """
    hierarchy = 1 + _HIERARCHY_COLUMNS * (1 + _chunks(concepts)) + 1 + _chunks(links)
    return 1 + hierarchy + sum(2 + _objects_of_round(header, each) for each in rounds)


def expected_requests(
    header: StoreHeader,
    rounds: Sequence[RoundSize],
    *,
    concepts: int,
    links: int,
    workers: int = 1,
    engine: Engine = "partitions",
    chunks_a_block: int = 1,
) -> Requests:
    """Requests of an undisturbed run to a complete store; workers start one after the other.

    Parameters
    ----------
    chunks_a_block : inner chunks of a shard; if there are several, a row takes two requests.
    """
    put = expected_objects(header, rounds, concepts=concepts, links=links)
    put += (_WRITES_OF_ROUND_ATTRIBUTES - 1) * len(rounds)
    get, head, listed = 28, 12, 2
    for each in rounds:
        get += _gets_of_round(header, each, chunks_a_block) + each.blocks * _looks_at_marks(engine)
        head += _heads_of_round(header)
    later = requests_to_join(header, rounds, concepts=concepts, links=links, engine=engine)
    totals = zip((put, get, head, listed), later, strict=True)
    return Requests(*(first + (workers - 1) * joined for first, joined in totals))


def requests_to_join(
    header: StoreHeader,
    rounds: Sequence[RoundSize],
    *,
    concepts: int,
    links: int,
    engine: Engine = "partitions",
) -> Requests:
    """Requests of a worker that joins, without those for blocks: it compares every column."""
    get = 2 + _HIERARCHY_COLUMNS + 1 + _HIERARCHY_COLUMNS * _chunks(concepts) + _chunks(links)
    for each in rounds:
        get += 23 + _groups(header) + 2 * (_arrays(header) + _has_ids(header))
        get += _column_chunks(each)
        get += each.blocks * _looks_at_marks("partitions") if engine == "partitions" else 1
    return Requests(0, get, 0, _HIERARCHY_COLUMNS + 1 + _COLUMNS * len(rounds))


def requests_of_block(header: StoreHeader, engine: Engine = "partitions") -> Requests:
    """Requests for one block: zarr reads the index of a shard before it replaces it."""
    marks = _looks_at_marks(engine) if engine == "ray" else 0
    objects = _arrays(header) + _block_columns(header) + 1
    return Requests(objects, _shards(header) + 1 + marks, 0, 0)


def _gets_of_round(header: StoreHeader, size: RoundSize, chunks_a_block: int) -> int:
    """For the layout, the blocks and the verification of a round; without looks at marks."""
    arrays, has_ids = _arrays(header), _has_ids(header)
    kinds = len(vector_arrays(header))
    # of every group above what is created
    laying_out = 120 + 6 * kinds + 7 * (_groups(header) - kinds) + 8 * arrays + 7 * has_ids
    blocks = size.blocks * requests_of_block(header).get
    # of rows that are verified, not in the first block if there are others, and their blocks' marks
    others = max(size.blocks - 1, 1)
    verified = min(VERIFIED_ROWS, size.rows - size.block_rows if size.blocks > 1 else size.rows)
    marks = others * (1 - (1 - 1 / others) ** verified)
    read = verified * (has_ids + arrays * (1 if chunks_a_block == 1 else 2))
    return laying_out + blocks + round(marks) + read


def _heads_of_round(header: StoreHeader) -> int:
    kinds = len(vector_arrays(header))
    groups = 3 * kinds + 4 * (_groups(header) - kinds)
    return 64 + groups + 5 * _arrays(header) + 4 * _has_ids(header)


def _looks_at_marks(engine: Engine) -> int:
    """Looks of a worker at the mark of a block: of all at start and end, or of its own alone."""
    return 2 if engine == "partitions" else 1


def _objects_of_round(header: StoreHeader, size: RoundSize) -> int:
    """Objects below a round's own metadata."""
    by_block = _arrays(header) + _block_columns(header) + 1
    metadata = 2 + _groups(header) + _COLUMNS + by_block
    return metadata + _column_chunks(size) + size.blocks * by_block


def _column_chunks(size: RoundSize) -> int:
    return _SAMPLE_COLUMNS * _chunks(size.rows) + _LABEL_COLUMNS * _chunks(size.labels)


def _block_columns(header: StoreHeader) -> int:
    """Columns of samples that extraction fills in: texts, counts, and tokens."""
    return 2 + _has_ids(header)


def _has_ids(header: StoreHeader) -> bool:
    return header.mode != "prompt"


def _groups(header: StoreHeader) -> int:
    """Groups that hold activations: by kind, and by phase."""
    return len(vector_arrays(header)) * (1 + len(header.phases))


def _shards(header: StoreHeader) -> int:
    return len(header.phases) * len(header.model_layers)


def _arrays(header: StoreHeader) -> int:
    return len(vector_arrays(header)) * _shards(header)


def _chunks(rows: int) -> int:
    """Objects of a column that is whole from the start."""
    return -(-rows // COLUMN_CHUNK_ROWS)
