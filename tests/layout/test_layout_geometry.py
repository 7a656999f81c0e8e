"""Page sizes and offsets against the published tables; contradictory descriptions are refused."""

import pytest

from dsv4core.errors import LayoutError
from dsv4core.layout import CacheField, get_layout, layouts, register
from dsv4core.layout.fp8_ds_mla import Fp8DsMla

# id -> fingerprint of version 1: a change here means new bytes, hence a new version.
FINGERPRINTS = {
    "fp8_ds_mla": "f9e030c24fe1",
    "fp8_ds_mla_fnuz": "52ae9a213710",
    "index_fp8": "9e22ddd5d643",
    "index_fp8_ue8m0x4": "22c0796da3b2",
    "index_fp8_hadamard_f32": "a496163be7f2",
    "index_mxfp4": "7896e80eade4",
    "index_mxfp4_hadamard": "4c7957ed81bf",
    "state_f32": "8ca7ea7a9da8",
    "fp8_row": "ded1580022a4",
    "bf16_row": "edc24034ab8e",
    "f32_row": "8f363f1bcc70",
    "index_f32": "d5d472056ad5",
}
# id, rows, payload, page
PAGES = [
    ("fp8_ds_mla", 64, 37376, 37440),
    ("fp8_ds_mla", 2, 1168, 1728),
    ("fp8_ds_mla", 1, 584, 1152),
    ("fp8_ds_mla_fnuz", 64, 37376, 37440),
    ("fp8_row", 64, 32768, 32768),
    ("fp8_row", 2, 1024, 1024),
    ("fp8_row", 1, 512, 512),
    ("index_fp8", 64, 8448, 8640),
    ("index_fp8_ue8m0x4", 64, 8448, 8640),
    ("index_fp8_hadamard_f32", 64, 8448, 8640),
    ("index_mxfp4", 64, 4352, 4608),
    ("index_mxfp4_hadamard", 64, 4352, 4608),
    ("bf16_row", 64, 65536, 65536),
    ("bf16_row", 2, 2048, 2048),
    ("f32_row", 64, 131072, 131072),
    ("f32_row", 2, 4096, 4096),
    ("index_f32", 64, 32768, 32768),
    ("index_f32", 3, 1536, 1536),
]


def sized(layout_id):
    layout = get_layout(layout_id)
    return layout.sized(1024) if layout.width is None else layout


@pytest.mark.parametrize(("layout_id", "rows", "payload", "page"), PAGES)
def test_page_sizes(layout_id, rows, payload, page):
    layout = get_layout(layout_id)
    assert rows * layout.record_bytes == payload
    assert layout.page_bytes(rows) == page


@pytest.mark.parametrize(
    ("width", "rows", "payload", "page"),
    [
        (1024, 4, 32768, 32832),
        (256, 4, 8192, 8640),
        (512, 8, 32768, 32832),
    ],
)
def test_state_page_sizes(width, rows, payload, page):
    state = get_layout("state_f32").sized(width)
    assert (state.record_bytes, rows * state.record_bytes) == (8 * width, payload)
    assert state.page_bytes(rows) == page
    assert page % 4 == 0
    assert state.values == 2 * width
    assert [(f.name, f.offset) for f in state.row_fields] == [("kv", 0), ("score", 4 * width)]


def test_ids_and_fingerprints_are_pinned():
    assert {layout.id: layout.fingerprint for layout in layouts()} == FINGERPRINTS
    assert all(layout.version == 1 for layout in layouts())


def test_fingerprint_follows_the_bytes_and_not_the_prose():
    layout = get_layout("fp8_ds_mla")
    assert layout.model_copy(update={"summary": "other words"}).fingerprint == layout.fingerprint
    state = get_layout("state_f32")
    assert state.sized(512).fingerprint != state.sized(256).fingerprint
    assert state.sized(512).fingerprint == state.sized(512).fingerprint
    values = {**layout.model_dump(), "version": 2}
    assert Fp8DsMla(**values).fingerprint != layout.fingerprint


def test_fp8_ds_mla_offsets():
    layout = get_layout("fp8_ds_mla")
    assert (layout.row_bytes, layout.tail_bytes, layout.record_bytes) == (576, 8, 584)
    assert layout.row_offset(3) == 1728
    assert layout.tail_offset(64, 0) == 36864
    assert layout.tail_offset(64, 63) == 37368
    spans = {span.name: span for span in layout.fields(64)}
    assert list(spans) == ["nope", "rope", "scale", "scale_pad", "(padding)"]
    assert (spans["rope"].offset, spans["rope"].stride, spans["rope"].nbytes) == (448, 576, 128)
    assert spans["scale_pad"].formula == "36871 + 8*i"
    assert (spans["(padding)"].offset, spans["(padding)"].nbytes) == (37376, 64)


@pytest.mark.parametrize("layout_id", FINGERPRINTS)
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_every_byte_of_a_page_belongs_to_one_field(layout_id, rows):
    layout = sized(layout_id)
    owners = [0] * layout.page_bytes(rows)
    for span in layout.fields(rows):
        for item in range(span.items):
            start = span.offset + item * span.stride
            for byte in range(start, start + span.nbytes):
                owners[byte] += 1
    assert set(owners) == {1}


def described(**changes):
    values = {
        "id": "bad",
        "family": "main",
        "width": 512,
        "row_fields": (
            CacheField(name="nope", offset=0, dtype="e4m3fn", count=448),
            CacheField(name="rope", offset=448, dtype="bf16", count=64),
        ),
        "alignment": 576,
        "value_dtype": "bf16",
    }
    return Fp8DsMla(**{**values, **changes})


def field(name, offset, dtype="ue8m0", count=1):
    return CacheField(name=name, offset=offset, dtype=dtype, count=count)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"row_fields": (field("a", 0, count=448), field("rope", 512))},
            r"layout 'bad': field 'rope' starts at byte 512, expected 448 \(a gap before it\)",
        ),
        (
            {"row_fields": (field("a", 0, count=448), field("b", 440))},
            r"byte 440, expected 448 \(an overlap\)",
        ),
        ({"row_fields": (field("a", 1),)}, r"'a' starts at byte 1, expected 0 \(a gap"),
        ({"tail_fields": (field("s", 0), field("t", 2))}, r"'t' starts at byte 2, expected 1"),
        ({"tail_fields": (field("nope", 0),)}, "'nope' is there twice"),
        ({"row_fields": ()}, "no row fields"),
        ({"alignment": 0}, "'alignment' is 0"),
        ({"colour": 3}, "'colour' is not a field; the fields are id, version"),
        ({"family": "other"}, "'family' is 'other'"),
        ({"id": "Bad Name"}, "'id' is 'Bad Name'"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(LayoutError, match=message):
        described(**changes)


def test_a_sound_description_is_accepted_and_frozen():
    layout = described()
    assert layout.row_bytes == 576
    with pytest.raises(Exception, match="frozen"):
        layout.version = 3


@pytest.mark.parametrize(
    "values",
    [
        {"name": "a", "offset": -1, "dtype": "bf16", "count": 1},
        {"name": "a", "offset": 0, "dtype": "fp8", "count": 1},
        {"name": "a", "offset": 0, "dtype": "bf16", "count": 0},
        {"name": "a", "offset": 0, "dtype": "bf16"},
    ],
)
def test_impossible_fields_are_refused(values):
    with pytest.raises(LayoutError, match="cache field"):
        CacheField(**values)


def test_unknown_id_names_what_exists():
    with pytest.raises(LayoutError, match=r"'fp8_ds_ml' does not exist.*; did you mean 'fp8_ds_mla'\?"):
        get_layout("fp8_ds_ml")
    with pytest.raises(LayoutError, match="does not exist"):
        get_layout("zzz")


def test_an_id_is_registered_once():
    with pytest.raises(LayoutError, match="registered already"):
        register(get_layout("bf16_row"))


def test_widths():
    state = get_layout("state_f32")
    uses = (lambda: state.row_bytes, lambda: state.page_bytes(4), lambda: state.values)
    for use in uses:
        with pytest.raises(LayoutError, match=r"no width yet.*get_layout\('state_f32'\)\.sized"):
            use()
    assert get_layout("index_fp8").sized(128) is get_layout("index_fp8")
    with pytest.raises(LayoutError, match="has width 128 only"):
        get_layout("index_fp8").sized(512)
    with pytest.raises(LayoutError, match="count"):
        state.sized(0)


@pytest.mark.parametrize("rows", [0, -1])
def test_a_page_has_rows(rows):
    with pytest.raises(LayoutError, match="at least 1"):
        get_layout("bf16_row").page_bytes(rows)
