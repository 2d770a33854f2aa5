"""Samples from files and from a seed: what fits is read, what does not is told by name, shape and dtype."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from harness.errors import ParseError, ProbeError, UsageError
from harness.models.inputs import RandomInputs, load_samples, random_samples, read_samples, save_samples

INPUTS = [
    helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"]),
    helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"]),
]
FEEDS = {"ids": np.array([[1, 2, 3]]), "image": np.zeros((1, 3, 8, 8), np.float32)}


def test_npz_files_are_one_sample_each(tmp_path):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", **FEEDS)
    samples = read_samples([tmp_path / "a.npz", tmp_path / "b.npz"], INPUTS)
    assert len(samples) == 2
    np.testing.assert_array_equal(samples[1]["ids"], FEEDS["ids"])


def test_polygraphys_json_holds_several(tmp_path):
    json = pytest.importorskip("polygraphy.json")
    json.save_json([FEEDS, {**FEEDS, "ids": np.array([[7]])}], str(tmp_path / "inputs.json"))
    samples = read_samples([tmp_path / "inputs.json"], INPUTS)
    assert [sample["ids"].tolist() for sample in samples] == [[[1, 2, 3]], [[7]]]


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_files_that_are_no_archives(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ParseError, match=r"bad\.npz"):
        read_samples([tmp_path / "bad.npz"], INPUTS)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"a": 1}'])
def test_json_that_is_not_polygraphys(tmp_path, content):
    pytest.importorskip("polygraphy.json")
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ProbeError):
        read_samples([tmp_path / "bad.json"], INPUTS)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", ids=np.array([{"a": 1}], dtype=object), image=FEEDS["image"])
    with pytest.raises(ParseError, match="plain arrays"):
        read_samples([tmp_path / "objects.npz"], INPUTS)


def test_random_samples_repeat_with_their_seed_and_tell_what_they_assume():
    (first,), notes = random_samples(INPUTS, RandomInputs(seed=3))
    (again,), _ = random_samples(INPUTS, RandomInputs(seed=3))
    (other,), _ = random_samples(INPUTS, RandomInputs(seed=4))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], other["image"])
    assert first["image"].shape == (1, 3, 64, 64)
    assert first["ids"].shape == (1, 16)
    assert [note.partition(";")[0] for note in notes] == [
        "input 'ids' has free dimensions",
        "input 'image' has free dimensions",
    ]


def test_shape_and_range_are_kept():
    how = RandomInputs(shapes={"ids": (2, 5), "image": (1, 3, 4, 4)}, low=10, high=20, samples=3)
    samples, notes = random_samples(INPUTS, how)
    assert len(samples) == 3
    assert not notes
    for sample in samples:
        assert sample["ids"].shape == (2, 5)
        assert ((sample["ids"] >= 10) & (sample["ids"] < 20)).all()
        assert ((sample["image"] >= 10) & (sample["image"] < 20)).all()


@pytest.mark.parametrize(
    "shapes,message",
    [
        ({"nobody": (1,)}, "no such input"),
        ({"image": (1, 4, 8, 8)}, "expected shape 1x3"),
        ({"ids": (3,)}, "expected shape"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(UsageError, match=message):
        random_samples(INPUTS, RandomInputs(shapes=shapes))


def test_saved_samples_come_back_the_same(tmp_path):
    (back,) = load_samples(save_samples([FEEDS], tmp_path))
    assert back.keys() == FEEDS.keys()
    for name, array in FEEDS.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_a_dimension_with_a_name_follows_the_shape_that_was_given():
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "S"]) for name in ("ids", "mask")]
    inputs.append(helper.make_tensor_value_info("free", TensorProto.FLOAT, ["B", "T"]))
    (feeds,), notes = random_samples(inputs, RandomInputs(shapes={"ids": (2, 128)}))
    assert {name: array.shape for name, array in feeds.items()} == {"ids": (2, 128), "mask": (2, 128), "free": (2, 16)}
    assert [note.split("'")[1] for note in notes] == ["free"]
