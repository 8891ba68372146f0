"""Which names, kinds and sizes are selected."""

import dataclasses
import pickle

import jsonargparse
import pytest

from lightning_farms.analysis.selection import KINDS, PatternError, Selection


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("blocks.0", ["blocks.0", "blocks.0.attn.q"], ["blocks.01", "blocks", "net.blocks.0"]),
        ("blocks.*", ["blocks.0", "blocks.0.attn.q"], ["blocks", "net.blocks.0"]),
        ("*.q", ["blocks.0.attn.q", "a.q"], ["q", "a.q2"]),
        ("blocks.[12].*", ["blocks.1.mlp", "blocks.2.mlp.0"], ["blocks.3.mlp"]),
        ("*.attn", ["blocks.0.attn"], ["attn", "blocks.0.attn2"]),
    ],
)
def test_patterns(pattern, matching, other):
    include, exclude = Selection(include=(pattern,)), Selection(exclude=(pattern,))
    for name in matching:
        assert include.refusal(name, "linear", (1, 4, 4)) is None
        assert exclude.refusal(name, "linear", (1, 4, 4)) == f"excluded by the pattern {pattern!r}"
    for name in other:
        assert exclude.refusal(name, "linear", (1, 4, 4)) is None
        assert include.refusal(name, "linear", (1, 4, 4)) == f"matches no pattern of `include`, {pattern!r}"


def test_exclusion_wins():
    selection = Selection(include=("blocks",), exclude=("*.q",))
    assert selection.refusal("blocks.0.q", "linear", (1, 4, 4)) == "excluded by the pattern '*.q'"
    assert selection.refusal("blocks.0.k", "linear", (1, 4, 4)) is None


@pytest.mark.parametrize(
    ("selection", "kind", "shape", "reason"),
    [
        (Selection(), "linear", (3, 1, 9), None),
        (Selection(min_size=2), "linear", (1, 1, 9), "the smaller dimension, 1, is below min_size 2"),
        (Selection(min_size=4), "linear", (9, 4, 5), None),
        (Selection(min_size=4), "linear", (9, 9, 3), "the smaller dimension, 3, is below min_size 4"),
        (Selection(max_size=4), "linear", (9, 9, 4), None),
        (Selection(max_size=4), "linear", (9, 5, 9), "the smaller dimension, 5, is above max_size 4"),
        (Selection(kinds=("attention",)), "attention", (1, 4, 4), None),
        (Selection(kinds=("attention",)), "linear", (1, 4, 4), "its kind, 'linear', is not among those to analyse"),
        (
            Selection(),
            "embedding",
            (1, 4, 4),
            "embeddings are analysed on request only: Selection(embeddings=True), or --embeddings",
        ),
        (Selection(embeddings=True), "embedding", (1, 4, 4), None),
        (Selection(kinds=("embedding",)), "embedding", (1, 4, 4), None),
        (Selection(kinds=("linear",), embeddings=True), "embedding", (1, 4, 4), "its kind, 'embedding'"),
    ],
)
def test_kinds_and_sizes(selection, kind, shape, reason):
    refusal = selection.refusal("a", kind, shape)
    assert refusal is None if reason is None else refusal.startswith(reason)


def test_kinds_that_are_analysed_on_request_are_asked_for_by_name():
    assert Selection(kinds=KINDS) == Selection(kinds=KINDS, embeddings=True, low_rank_products=True)
    assert Selection(kinds=("low-rank product",)).low_rank_products


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            Selection(include=("blocks.O.*",)),
            "`include` to match layers, but 'blocks.O.*' matches none. The closest are blocks.1, blocks.0, blocks.",
        ),
        (Selection(exclude=("hed",)), "`exclude` to match layers, but 'hed' matches none. The closest are head."),
        (Selection(exclude=("zzzz",)), "The layers are blocks.0.mlp, blocks.1.mlp, head."),
    ],
)
def test_a_pattern_without_a_match_names_what_is_near(selection, message):
    with pytest.raises(PatternError, match="matches none") as raised:
        selection.check_patterns(["blocks.0.mlp", "blocks.1.mlp", "head"])
    assert message in str(raised.value)
    assert (raised.value.pattern,) == getattr(selection, raised.value.argument)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    Selection(include=("blocks.0", "head"), exclude=("*.mlp",)).check_patterns(["blocks.0.mlp", "head"])


def test_a_model_without_layers_matches_nothing():
    Selection().check_patterns([])
    with pytest.raises(ValueError, match=r"'a' matches none\. There are no layers"):
        Selection(include=("a",)).check_patterns([])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"include": "blocks"}, TypeError, r"`include` to be a tuple of strings, as in \('head',\), but got 'blocks'"),
        ({"exclude": (1,)}, TypeError, "`exclude` to be a tuple of strings"),
        ({"exclude": ("",)}, ValueError, "`exclude` to hold no empty string"),
        ({"kinds": ("dense",)}, ValueError, "`kinds` to be one of linear, convolution, .*, but got 'dense'"),
        ({"min_size": 2.0}, TypeError, "`min_size` to be an integer, but got 2.0"),
        ({"min_size": None}, TypeError, "`min_size` to be an integer, but got None"),
        ({"max_size": 0}, ValueError, "`max_size` to be at least 1, but got 0"),
        ({"min_size": 5, "max_size": 4}, ValueError, "`max_size` to be at least min_size, which is 5, but got 4"),
        ({"embeddings": 1}, TypeError, "`embeddings` to be True or False, but got 1"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        Selection(**arguments)


def test_it_is_a_value():
    assert hash(Selection(include=["a"])) == hash(Selection(include=("a",)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Selection().min_size = 3


def test_it_can_be_given_on_a_command_line():
    def use(selection: Selection = Selection()):
        return selection

    arguments = ["--selection.exclude=[head]", "--selection.min_size=8", "--selection.embeddings=true"]
    assert jsonargparse.auto_cli(use, args=arguments) == Selection(exclude=("head",), min_size=8, embeddings=True)
