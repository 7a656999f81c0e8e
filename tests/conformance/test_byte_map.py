"""The suite's own words for bytes and its own row codec agree with the library's layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv4core.layout import get_layout
from dsv4core_conformance.inputs.numbers import Numbers
from dsv4core_conformance.reference import byte_map, rows

LAYOUTS = tuple(rows.RECORDS)


@pytest.mark.parametrize("count", [1, 2, 64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fields_are_where_the_layout_has_them(layout: str, count: int) -> None:
    ours = {f.name: (f.offset, f.stride, f.count * f.size) for f in byte_map.fields(layout, count)}
    spans = [span for span in get_layout(layout).fields(count) if span.items == count and span.stride]
    assert ours == {span.name: (span.offset, span.stride, span.nbytes) for span in spans}
    assert rows.page_bytes(layout, count) == get_layout(layout).page_bytes(count)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_byte_of_a_page_has_words(layout: str) -> None:
    record, count = rows.RECORDS[layout], 3
    words = [byte_map.field_at(layout, count, at) for at in range(rows.page_bytes(layout, count))]
    assert sum(word.startswith("row ") for word in words) == count * (record.front + record.tail)
    assert all(word.startswith(("row ", "padding")) for word in words)


def test_words_name_row_field_and_item() -> None:
    assert byte_map.field_at("fp8_ds_mla", 64, 17 * 576 + 448 + 5) == "row 17, field `rope`[2]"
    assert byte_map.field_at("fp8_ds_mla", 64, 64 * 576 + 17 * 8 + 7) == "row 17, field `scale_pad`[0]"
    assert "padding" in byte_map.field_at("fp8_ds_mla", 64, 64 * 584)
    assert "behind the page" in byte_map.field_at("fp8_ds_mla", 64, 37440)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_encoded_and_decoded_as_the_library_does(layout: str) -> None:
    record, library = rows.RECORDS[layout], get_layout(layout)
    values = np.concatenate(
        [Numbers(3).of(kind, 24, record.width) for kind in ("normal", "spread", "corners")]
    )
    front, tail = rows.encode(layout, values)
    both = np.concatenate((front, tail), axis=1)
    assert np.array_equal(both, library.encode(torch.from_numpy(values)).numpy())
    back = library.decode(torch.from_numpy(both)).float().numpy()
    mine = rows.decode(layout, front, tail)
    assert np.array_equal(mine.astype(np.float32), back)


def test_slots_of_a_table() -> None:
    table = np.array([[4, -1, 2], [0, 1, -1]], dtype=np.int32)
    index = np.array([0, 3, 4, 11, 12, -1])
    assert rows.table_slots(table, np.int64(0), index, 4).tolist() == [16, 19, -1, 11, -1, -1]
