"""Which layer is the head, by identity, accessor and name."""

import pytest
from torch import nn

from amuse_optim import param_groups
from tests.amuse_optim.routing import Parts, Tied, directions


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.requirement("C2")
def test_heads_tied_and_untied(tie: bool) -> None:
    expected = {
        "embed.weight": "adamw",
        "block.weight": "muon",
        "block.bias": "adamw",
        "norm.weight": "adamw",
        "norm.bias": "adamw",
    }
    assert directions(Tied(tie)) == expected | ({} if tie else {"lm_head.weight": "adamw"})


def test_a_weight_tied_to_an_embedding_is_auxiliary_whatever_comes_first() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 11, bias=False)
            self.embed = nn.Embedding(11, 8)
            self.embed.weight = self.project.weight

    assert directions(HeadFirst()) == {"project.weight": "adamw"}


@pytest.mark.requirement("C2")
def test_accessors_of_the_model_name_the_head() -> None:
    class HuggingFaceLike(Tied):
        def __init__(self) -> None:
            super().__init__(tie=False)
            self.unusual = self.lm_head
            del self.lm_head

        def get_output_embeddings(self) -> nn.Module:
            return self.unusual

    class TimmLike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.last = nn.Linear(8, 4)

        def get_classifier(self) -> nn.Module:
            return self.last

    assert directions(HuggingFaceLike())["unusual.weight"] == "adamw"
    assert directions(TimmLike()) == {
        "stem.weight": "muon",
        "stem.bias": "adamw",
        "last.weight": "adamw",
        "last.bias": "adamw",
    }


@pytest.mark.parametrize(
    "name", ["to_logits", "mlp_head", "prediction_head", "proj_out", "decoder", "head", "fc", "output"]
)
def test_heads_by_name(name: str) -> None:
    found = directions(Parts(trunk=nn.Linear(8, 8), **{name: nn.Linear(8, 4)}))
    assert found["trunk.weight"] == "muon"
    assert found[f"{name}.weight"] == "adamw"


def test_names_that_are_no_heads_in_other_places() -> None:
    block = Parts(fc=nn.Linear(8, 8), output=nn.Linear(8, 8), heads=nn.ModuleList([nn.Linear(8, 8)]))
    decoder = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    found = directions(Parts(blocks=nn.ModuleList([block]), decoder=decoder, empty=nn.Sequential()))
    assert {direction for name, direction in found.items() if name.endswith("weight")} == {"muon"}


def test_a_trunk_called_net_keeps_its_last_layer() -> None:
    model = Parts(net=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), head=nn.Linear(8, 2))
    assert directions(model)["net.2.weight"] == "muon"
    assert directions(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))["1.weight"] == "adamw"


def test_accessors_with_other_meanings_or_several_heads() -> None:
    class Distilled(Parts):
        def get_classifier(self) -> tuple[nn.Module, nn.Module]:
            return self.one, self.two

    class Other(Parts):
        def get_classifier(self, name: str) -> str:
            return name

    found = directions(Distilled(trunk=nn.Linear(8, 8), one=nn.Linear(8, 2), two=nn.Linear(8, 2)))
    assert (found["one.weight"], found["two.weight"], found["trunk.weight"]) == ("adamw", "adamw", "muon")
    assert directions(Other(trunk=nn.Linear(8, 8)))["trunk.weight"] == "muon"


def test_an_accessor_that_is_broken_is_not_silently_passed_over() -> None:
    class Broken(Parts):
        def get_output_embeddings(self) -> nn.Module:
            return self.trunk + 1

    with pytest.raises(TypeError, match="unsupported operand"):
        param_groups(Broken(trunk=nn.Linear(8, 8)))
