"""Options are checked once, where they are given; the message names them and what is allowed."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrq_jax import Config, InputError

TARGETS = ("bits_per_weight", "max_bytes", "mean_correlation", "min_correlation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coding": "zip"}, r"coding='zip': it has to be 'packed' or 'trellis' or 'entropy' or"),
        ({"coding": None}, r"coding=None: it has to be"),
        ({"coding": ["packed"]}, r"coding=\['packed'\]: it has to be"),
        *(
            ({"coding": "entropy", "grid": grid}, f"coding='entropy' with grid='{grid}': only 'opt")
            for grid in ("linear", "exponential", "nf4")
        ),
        ({"granularity": "row"}, r"granularity='row': give one of 'tensor', 'channel', 'auto', or"),
        ({"granularity": "auto"}, r"within a target: give one of bits_per_weight, max_bytes, mean"),
        *(
            ({"granularity": bad}, f"granularity={bad}: give a name, or a group size, which is 2")
            for bad in (1, 0, -4, True, 2.5, None)
        ),
        ({"axes": 3}, r"axes=3: give a mapping from pattern to axes"),
        ({"axes": {"a": 3}}, r"axes=\{'a': 3\}: give a mapping"),
        ({"axes": {"a": ("x",)}}, r"axes=.*: give a mapping"),
        ({"axes": {"a": (1.5,)}}, r"axes=.*: give a mapping"),
        ({"axes": {"a": "12"}}, r"axes=.*: give a mapping"),
    ],
    ids=str,
)
def test_coding_and_granularity(options, message):
    with pytest.raises(InputError, match=message):
        Config(**options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, True, False, [4], 1j], ids=str)
def test_targets_are_above_zero(target, value):
    with pytest.raises(InputError, match=rf"{target}=.*: give a number above 0"):
        Config(**{target: value})


@pytest.mark.parametrize("target", ["bits_per_weight", "mean_correlation", "min_correlation"])
def test_only_bytes_are_given_as_text(target):
    with pytest.raises(InputError, match=f"{target}='4MB': give a number above 0"):
        Config(**{target: "4MB"})


@pytest.mark.parametrize("target", ["mean_correlation", "min_correlation"])
@pytest.mark.parametrize("value", [1, 1.0, 4, math.inf])
def test_correlations_are_below_one(target, value):
    with pytest.raises(InputError, match=rf"{target}=.*: give a correlation below 1"):
        Config(**{target: value})


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", TARGETS)
def test_one_target_is_enough(first, second):
    if first == second:
        assert Config(**{first: 0.5}).target == first
        return
    with pytest.raises(InputError, match=r"give one target, not .* and ") as error:
        Config(**{first: 0.5, second: 0.5})
    assert first in str(error.value)
    assert second in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4MB", 4_000_000),
        ("4MiB", 4 * 2**20),
        ("1.5 GB", 1_500_000_000),
        ("0.5GiB", 2**29),
        ("3kb", 3000),
        ("3KiB", 3072),
        (" 700 b ", 700),
        ("700", 700),
        (".5 mb", 500_000),
        ("2.5", 2),
        (700, 700),
        (1e6, 1e6),
        (np.int64(700), 700),
        (np.float32(700), 700),
    ],
    ids=repr,
)
def test_sizes(text, value):
    config = Config(max_bytes=text)
    assert config.max_bytes == value
    assert config == Config(max_bytes=value)


@pytest.mark.parametrize(
    "text", ["x", "", "MB", "4 XB", "-4MB", "4,5MB", "1e6", "4MB 2", "4M", "inf", "nan", "٤MB"]
)
def test_what_is_no_size(text):
    with pytest.raises(InputError, match=r"max_bytes='.*': give a number of bytes, or text such"):
        Config(max_bytes=text)


@pytest.mark.parametrize("text", ["0", "0 MB", "0.2"])
def test_no_bytes_at_all(text):
    with pytest.raises(InputError, match="max_bytes=0: give a number above 0"):
        Config(max_bytes=text)


@given(st.integers(1, 10**12), st.sampled_from(["", "B", "kB", "MB", "GB", "KiB", "MiB", "GiB"]))
def test_any_whole_size(number, unit):
    power = " kmg".index(unit[:1].lower().replace("b", "") or " ")
    factor = (1024 if "i" in unit else 1000) ** power
    # A product of floats: exact to 2**53.
    assert Config(max_bytes=f"{number} {unit}").max_bytes == pytest.approx(
        number * factor, rel=2**-52
    )


def test_bits_are_widths_with_a_target():
    assert Config(bits_per_weight=4).bits is None
    assert Config().bits == 4
    assert Config(bits_per_weight=4, bits=(8, 2, 2, 4)).bits == (2, 4, 8)
    assert Config(bits_per_weight=4, bits=[8, 2]).bits == (2, 8)
    assert Config(bits_per_weight=4, bits=range(2, 5)).bits == (2, 3, 4)
    config = Config(bits_per_weight=4, bits={"a": (4, 2), "b*": 3})
    assert config.bits == (("a", (2, 4)), ("b*", 3))
    assert config.widths_of("a/kernel") == (2, 4)
    assert config.widths_of("bias") == (3,)
    assert config.widths_of("c") == tuple(range(1, 9))
    assert Config(bits={"a": 2}).widths_of("c") is None
    assert Config(max_bytes=9, grid="nf4").widths_of("c") == (4,)
    assert Config(max_bytes=9, grid="exponential", zero=True).widths_of("c") == tuple(range(2, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bits": (2, 4)},
            r"bits=\(2, 4\): give a whole number from 1 to 8; to choose from several needs",
        ),
        ({"bits": {"a": (2, 4)}}, r"bits\['a'\]=\(2, 4\): give a whole number from 1 to 8"),
        ({"bits": {0: 4}}, r"bits=\{0: 4\}: give path patterns, as text, and bits"),
        ({"bits": (("a", 4), 3)}, r"bits=\(\('a', 4\), 3\): give path patterns"),
        ({"bits": (), "max_bytes": 9}, "bits is empty: give at least one width"),
        ({"bits": {}, "max_bytes": 9}, "bits is an empty mapping: give at least one path"),
        ({"bits": {"a": ()}, "max_bytes": 9}, r"bits\['a'\] is empty: give at least one width"),
        ({"bits": (2, 9), "max_bytes": 9}, "bits=9: give a whole number from 1 to 8"),
        ({"bits": {"a": (2, 0)}, "max_bytes": 9}, r"bits\['a'\]=0: give a whole number from 1"),
        ({"bits": (2, 2.5), "max_bytes": 9}, r"bits=2\.5: give a whole number"),
        ({"bits": (3, 4), "max_bytes": 9, "grid": "nf4"}, "bits=3 with grid='nf4': NF4 has 4 bits"),
        (
            {"bits": (1, 4), "max_bytes": 9, "grid": "exponential", "zero": True},
            r"bits=1: .* from 2 to 8 .*is zero",
        ),
    ],
    ids=str,
)
def test_widths_that_are_not_allowed(options, message):
    with pytest.raises(InputError, match=message):
        Config(**options)


EQUAL = [
    (Config(bits=4), Config()),
    (Config(fit="correlation", levels="mean"), Config()),
    (Config(bits=np.int64(3)), Config(bits=3)),
    (Config(axes={"a": [1, 2]}), Config(axes=(("a", (1, 2)),))),
    (Config(axes={"a": (np.int32(1),)}), Config(axes={"a": (1,)})),
    (Config(granularity=np.int64(32)), Config(granularity=32)),
    (Config(max_bytes="4MB"), Config(max_bytes=4_000_000)),
    (Config(bits_per_weight=np.float32(3.5)), Config(bits_per_weight=3.5)),
    (Config(max_bytes=9, bits={"a": [3, 2]}), Config(max_bytes=9, bits=(("a", (2, 3)),))),
]


@pytest.mark.parametrize(("one", "other"), EQUAL, ids=repr)
def test_equal_options_are_equal_and_hash_alike(one, other):
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, dataclasses.replace(one)}) == 1


def test_options_that_differ_are_not_equal():
    several = [
        Config(),
        Config(coding="entropy"),
        Config(granularity="channel"),
        Config(granularity=16),
        Config(axes={"a": (0,)}),
        *(Config(**{target: 0.5}) for target in TARGETS),
        Config(bits_per_weight=0.5, bits=4),
        Config(bits_per_weight=0.5, bits=(4, 5)),
    ]
    assert len(set(several)) == len(several)


def test_axes_belong_to_the_first_pattern_and_are_checked_like_bits():
    config = Config(granularity="channel", axes={"a*": (0,), "ab": (1, 2)})
    assert config.axes_of("ab/kernel") == (0,)
    assert config.axes_of("b/kernel") is None
    assert config.patterns() == ("a*", "ab")
    assert Config(bits={"c": 2}, axes={"a": (0,)}, select="b").patterns() == ("c", "a", "b")
