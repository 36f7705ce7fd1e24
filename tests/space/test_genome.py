"""Genomes are plain, frozen, hashable data that JSON carries both ways."""

import numpy as np
import pytest
from pydantic import ValidationError

from archloop.space.genome import BlockGenes, ChannelGenes, Genome, MixerGenes
from archloop.space.variation import sample
from space.spaces import named

BLOCK = BlockGenes(
    mixers=(MixerGenes(name="gqa"),),
    channel_mixer=ChannelGenes(name="swiglu", genes={"expansion": 2.0}),
)


def test_json_keeps_values_and_their_types() -> None:
    genes = {"a": 2, "b": 2.0, "c": True, "d": "x", "e": None}
    genome = Genome(global_genes=genes, family_genes={"gqa": genes}, blocks=(BLOCK,), period=1)
    back = Genome.from_json(genome.to_json())
    assert back == genome
    assert hash(back) == hash(genome)
    assert {k: type(v) for k, v in back.global_genes.items()} == {
        k: type(v) for k, v in genes.items()
    }


def test_equal_genomes_hash_alike_whatever_the_order_of_their_genes() -> None:
    one = Genome(global_genes={"a": 1, "b": 2}, blocks=(BLOCK,))
    two = Genome(global_genes={"b": 2, "a": 1}, blocks=(BLOCK,))
    assert one == two
    assert len({one, two, one.replace(period=1)}) == 2


def test_a_genome_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Genome(blocks=(BLOCK,)).period = 2


@pytest.mark.parametrize("text", ["{}", '{"blocks": []}', '{"blocks": [{"mixers": 1}]}', "["])
def test_what_is_no_genome_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Genome.from_json(text)


def test_values_are_plain_python() -> None:
    genome = sample(named("rich"), np.random.default_rng(0))
    values = [
        *genome.global_genes.values(),
        *(v for b in genome.blocks for m in b.mixers for v in m.genes.values()),
    ]
    assert values
    assert {type(v) for v in values} <= {int, float, str, bool}
