"""The columns of a round and of the hierarchy: what layout, reading and verify must agree on.

A column is added here, in one line; one that comes from the plan names its field of `SamplePlan`.
All have been there since format version 1, but for those that are `optional`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lenscache.store.header import StoreHeader
from lenscache.store.token_ids import UNKNOWN

COMPLETION_IDS = "completion_ids"
"""A column of `samples`, and the attribute that says whether a round has it: older ones do not."""


class Column(NamedTuple):
    """One column: an array with a row for each sample, label or concept."""

    place: str
    """Group and name, such as "samples/key"."""
    dtype: str
    """As the metadata of the array call it."""
    plan: str = ""
    """The field of `SamplePlan` that it holds; empty if it comes from elsewhere."""
    axis: str = ""
    """Name of its second axis; empty if it has none."""
    width: int | str = 0
    """Length of the second axis, or the field of the header that says so."""
    fill: Any = None
    """In rows that are not extracted yet; None for a column that is whole from the start."""
    optional: bool = False
    """Of a round: whether an attribute of the round, of the same name, says if the round has it. Of
    the hierarchy: whether it is there only where the pack has something for it."""

    @property
    def name(self) -> str:
        """Without the group."""
        return self.place.partition("/")[2]

    @property
    def by_block(self) -> bool:
        """Whether extraction fills it in, block by block."""
        return self.fill is not None

    def more_axes(self, header: StoreHeader) -> dict[str, int]:
        """Length by name of the axes after the first."""
        width = getattr(header, self.width) if isinstance(self.width, str) else self.width
        return {self.axis: width} if self.axis else {}


COLUMNS = (
    Column("samples/key", "uint8", axis="byte", width=16),
    Column("samples/text", "string"),
    Column("samples/completion", "string", fill=""),
    Column("samples/kind", "uint8", "kind"),
    Column("samples/split", "uint8", "split"),
    Column("samples/repeat", "uint16", "repeat"),
    Column("samples/n_prompt_tokens", "int32"),
    Column("samples/n_cut_tokens", "int32"),
    Column("samples/n_completion_tokens", "int32", fill=-1),
    Column("samples/temperature", "float32", "temperature"),
    Column(
        f"samples/{COMPLETION_IDS}",
        "int32",
        axis="token",
        width="max_new_tokens",
        fill=UNKNOWN,
        optional=True,
    ),
    Column("labels/sample", "int32", "label_sample"),
    Column("labels/concept", "int32", "label_concept"),
    Column("labels/role", "uint8", "label_role"),
)
"""Of a round; those of a group in the order in which `Samples` and `Labels` hold them."""

HIERARCHY = (
    Column("hierarchy/id", "string"),
    Column("hierarchy/name", "string"),
    Column("hierarchy/definition", "string"),
    Column("hierarchy/layer", "int16"),
    Column("hierarchy/parent_links", "int32", axis="end", width=2),
    Column("hierarchy/confusable_links", "int32", axis="end", width=2, optional=True),
    Column("hierarchy/attributes", "string", optional=True),
)
