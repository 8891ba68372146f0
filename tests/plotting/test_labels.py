import pytest

from lightning_farms.plotting._labels import shortened


@pytest.mark.parametrize(
    "template",
    ["model.encoder.layers.{}.self_attention.query_projection", "model.layers.{}.self_attn.q_proj.parametrised_weight"],
)
def test_layers_that_differ_in_a_number_have_labels_of_their_own(template):
    labels = [shortened(template.format(number)) for number in range(120)]
    assert len(set(labels)) == 120
    assert max(map(len, labels)) <= 34
    assert all(f".{number}." in label for number, label in enumerate(labels))


def test_texts_lose_their_middle():
    assert shortened("a" * 20 + "b" * 20, 21) == "a" * 10 + "…" + "b" * 10
    assert shortened("0 short") == "0 short"
