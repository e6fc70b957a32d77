"""The comparison of the smoke check with its record."""

import pytest

from benchmarks.speed.smoke import RECORD, compare, read_record
from koe5_onnx import InputError

NODES = {"int8 padded": {"tiny": 112, "small": 276, "per layer": 41.0}}
BOUNDS = {"nodes": NODES, "least_ratios": {"padded to ort-fp32": 1.2}}


def test_recorded_results_have_no_fault():
    assert list(compare(BOUNDS, NODES, {"padded to ort-fp32": 1.2})) == []
    assert list(compare(BOUNDS, NODES, {})) == []


@pytest.mark.parametrize(
    ("nodes", "ratios", "fault"),
    [
        ({"int8 padded": {**NODES["int8 padded"], "small": 277}}, {}, "nodes of int8 padded"),
        ({}, {}, "nodes of int8 padded: None"),
        ({**NODES, "fp32 padded": {"tiny": 1}}, {}, "nodes of fp32 padded"),
        (NODES, {"padded to ort-fp32": 1.19}, "1.19x, expected at least 1.20x"),
        (NODES, {"padded to ort-fp32": float("nan")}, "expected at least 1.20x"),
        (NODES, {"fused to ort-fp32": 9.0}, "no bound is recorded"),
    ],
)
def test_differences_from_the_record_are_faults(nodes, ratios, fault):
    (found,) = compare(BOUNDS, nodes, ratios)
    assert fault in found


def test_the_committed_record_is_complete():
    record = read_record(RECORD)
    assert set(record["nodes"]) == {"fp32 padded", "int8 padded", "int8 packed"}
    assert all(bound > 0 for bound in record["least_ratios"].values())
    assert len(record["least_ratios"]) == 4


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_damaged_record_says_what_to_do(tmp_path, text):
    file = tmp_path / "smoke.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="smoke --record"):
        read_record(file)
