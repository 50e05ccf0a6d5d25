"""Which layers are output heads."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from amuse_optim import param_groups, report
from tests.amuse_optim.routing import Parts, Tied, auxiliary_weights, directions


def chain(*sizes: int) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for rows, cols in zip(sizes[1:], sizes[:-1], strict=True):
        layers += [nn.Linear(cols, rows, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """With layers that are called as heads are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8, bias=False)
        self.output = nn.Linear(8, 8, bias=False)
        self.heads = nn.ModuleList([nn.Linear(8, 8, bias=False)])
        self.mixing_head = nn.Linear(8, 8, bias=False)


class Backbone(nn.Module):
    """As torchvision's ResNet: stages of blocks, then fc."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.layer1 = nn.Sequential(Block())
        self.layer2 = nn.Sequential(Block())
        self.fc = nn.Linear(8, 5, bias=False)


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
    class HuggingFaceLike(Parts):
        def get_output_embeddings(self) -> nn.Module:
            return self.unusual

    class TimmLike(Parts):
        def get_classifier(self) -> nn.Module:
            return self.last

    one, two = nn.Linear(8, 8), nn.Linear(8, 4)
    assert auxiliary_weights(HuggingFaceLike(embed=nn.Embedding(9, 8), unusual=two, last=one)) == {
        "embed",
        "unusual",
    }
    assert auxiliary_weights(TimmLike(stem=nn.Conv2d(3, 8, 3), last=two, other=one)) == {"last"}


@pytest.mark.requirement("C10")
@pytest.mark.parametrize(
    ("answer", "heads"),
    [
        (lambda m: (m.one, m.two), {"one", "two"}),
        (lambda m: {"a": m.one, "b": [m.two]}, {"one", "two"}),
        (lambda m: m.several, {"several.0", "several.1.2"}),
        (lambda m: m.deep, {"deep.2"}),
        (lambda m: m.wrapped, {"wrapped"}),
        (lambda _: None, set()),
    ],
    ids=["tuple", "dict", "container", "chain", "wrapper", "none"],
)
def test_what_an_accessor_returns_is_looked_into(answer: object, heads: set[str]) -> None:
    class Model(Parts):
        def get_classifier(self) -> object:
            return answer(self)

    layers = {name: nn.Linear(8, 8, bias=False) for name in ("one", "two", "trunk")}
    several = nn.ModuleList([nn.Linear(8, 8, bias=False), chain(8, 8, 3)])
    model = Model(
        **layers,
        several=several,
        deep=chain(8, 8, 3),
        wrapped=checkpoint_wrapper(nn.Linear(8, 8, bias=False)),
        trunk_end=nn.Linear(8, 8, bias=False),
    )
    assert auxiliary_weights(model) == heads


def test_accessors_with_arguments_mean_something_else() -> None:
    class Other(Parts):
        def get_classifier(self, name: str) -> str:
            return name

    model = Other(body=nn.Linear(8, 8, bias=False), head=nn.Linear(8, 4, bias=False))
    assert auxiliary_weights(model) == {"head"}


def test_an_accessor_that_is_broken_is_not_silently_passed_over() -> None:
    class Broken(Parts):
        def get_output_embeddings(self) -> nn.Module:
            return self.trunk + 1

    with pytest.raises(TypeError, match="unsupported operand"):
        param_groups(Broken(trunk=nn.Linear(8, 8)))


@pytest.mark.requirement("C10")
@pytest.mark.parametrize(
    "name",
    [
        *("to_logits", "mlp_head", "prediction_head", "proj_out", "decoder", "head", "fc", "output", "cls"),
        *("class_embed", "bbox_predictor", "cls_score", "rpn_head", "box_head", "mask_logits"),  # detectors
        *("seq_relationship", "itm_head", "decoder_pred", "aux_classifier", "AuxLogits", "head_dist"),
        *("final_layer", "predict_action", "enc_out_bbox_embed", "score"),
    ],
)
def test_heads_by_name(name: str) -> None:
    found = directions(Parts(trunk=nn.Linear(8, 8), **{name: nn.Linear(8, 4)}, after=nn.Linear(8, 8)))
    assert found["trunk.weight"] == found["after.weight"] == "muon"
    assert found[f"{name}.weight"] == "adamw"


@pytest.mark.requirement("C10")
@pytest.mark.parametrize(
    "name",
    ["multi_head", "attention_head", "query_pos_head", "headroom", "classify", "outer", "fc1", "embedder"],
)
def test_names_that_only_look_like_heads(name: str) -> None:
    model = Parts(head=nn.Linear(8, 4, bias=False), **{name: nn.Linear(8, 8, bias=False)})
    assert auxiliary_weights(model) == {"head"}


def test_names_that_are_no_heads_inside_blocks() -> None:
    decoder = chain(8, 8, 8)
    model = Parts(blocks=nn.ModuleList([Block()]), decoder=decoder, head=nn.Linear(8, 4), e=nn.Sequential())
    assert auxiliary_weights(model) == {"head"}
    router = Parts(classifier=nn.Linear(8, 4, bias=False))
    assert auxiliary_weights(Parts(router=router, head=nn.Linear(8, 4))) == {"head"}


@pytest.mark.requirement("C10")
def test_every_head_of_a_container_and_the_last_layer_of_each() -> None:
    model = Parts(
        trunk=nn.Linear(8, 8, bias=False),
        bbox_embed=nn.ModuleList([chain(8, 8, 4), chain(8, 8, 4)]),
        heads=nn.ModuleDict({"a": nn.Linear(8, 2, bias=False), "b": chain(8, 8, 8, 2)}),
    )
    assert auxiliary_weights(model) == {"bbox_embed.0.2", "bbox_embed.1.2", "heads.a", "heads.b.4"}


@pytest.mark.requirement("C10")
@pytest.mark.parametrize("name", ["head", "projection_head", "mask_predictions", "final_layer", "cls"])
def test_layers_before_the_output_layer_are_its_input(name: str) -> None:
    several = {name: chain(8, 8, 8)}
    model = Parts(trunk=nn.Linear(8, 8, bias=False), **several, classifier=nn.Linear(8, 3, bias=False))
    assert auxiliary_weights(model) == {"classifier"}
    assert auxiliary_weights(Parts(trunk=nn.Linear(8, 8, bias=False), **several)) == {f"{name}.2"}


@pytest.mark.requirement("C10")
def test_features_of_a_detector_s_box_head_go_to_its_predictor() -> None:
    predictor = Parts(cls_score=nn.Linear(8, 3, bias=False), bbox_pred=nn.Linear(8, 4, bias=False))
    model = Parts(roi_heads=Parts(box_head=chain(8, 8, 8), box_predictor=predictor))
    assert auxiliary_weights(model) == {
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
    }


@pytest.mark.requirement("C10")
def test_a_last_convolution_before_the_head_that_an_accessor_names() -> None:
    class TimmLike(Parts):
        def get_classifier(self) -> nn.Module:
            return self.end

    convolution = nn.Conv2d(8, 8, 1, bias=False)
    assert auxiliary_weights(TimmLike(end=nn.Linear(8, 3), final_conv=convolution)) == {"end"}
    assert auxiliary_weights(TimmLike(conv_head=convolution, end=nn.Linear(8, 3))) == {"end"}
    assert auxiliary_weights(Parts(stem=nn.Linear(8, 8), final_conv=convolution)) == {"final_conv"}


@pytest.mark.requirement("C10")
def test_a_head_ends_in_the_heads_inside_it_or_behind_its_blocks() -> None:
    segmentation = Parts(classifier=nn.Conv2d(8, 3, 1, bias=False), bottleneck=nn.Conv2d(8, 8, 3, bias=False))
    scores = Parts(proj_out=nn.Linear(8, 4, bias=False), layers=nn.ModuleList([nn.Linear(8, 8, bias=False)]))
    structure = Parts(blocks=nn.ModuleList([Block(), Block()]), coordinates=nn.Linear(8, 3, bias=False))
    late_blocks = Parts(coordinates=nn.Linear(8, 3, bias=False), blocks=nn.ModuleList([Block(), Block()]))
    only_list = Parts(module_list=nn.ModuleList([nn.Conv2d(8, 3, 1, bias=False) for _ in range(2)]))
    perceptron = Parts(layers=nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)]))
    heads = {
        "decode_head": (segmentation, {"classifier"}),
        "iou_head": (scores, {"proj_out"}),
        "structure_head": (structure, {"coordinates"}),
        "late_head": (late_blocks, {"coordinates"}),
        "regression_head": (only_list, {"module_list.0", "module_list.1"}),
        "bbox_predictor": (perceptron, {"layers.1"}),
    }
    for name, (head, layers) in heads.items():
        model = Parts(trunk=nn.Linear(8, 8, bias=False), **{name: head})
        assert auxiliary_weights(model) == {f"{name}.{layer}" for layer in layers}, name


@pytest.mark.requirement("C10")
def test_what_a_transformers_model_has_beside_its_trunk_is_its_head() -> None:
    class ForSomething(Parts):
        base_model_prefix = "trunk"

        @property
        def base_model(self) -> nn.Module:
            return self.trunk

    trunk = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU())
    model = ForSomething(start=nn.Linear(8, 8), trunk=trunk, one=nn.Linear(8, 8), summary=nn.Linear(8, 3))
    assert auxiliary_weights(model) == {"summary"}
    assert param_groups(model).notes == ()
    type(model).__name__ = "Model"
    assert "summary" in param_groups(model).notes[0]


@pytest.mark.requirement("C10")
def test_backbones_have_their_head_wherever_they_are() -> None:
    model = Parts(encoder=Backbone(), captions=nn.LSTM(5, 8), lm_head=nn.Linear(8, 9, bias=False))
    assert auxiliary_weights(model) == {"encoder.fc", "lm_head"}
    assert auxiliary_weights(Backbone()) == {"fc"}
    assert auxiliary_weights(nn.ModuleList([Backbone(), Backbone()])) == {"0.fc", "1.fc"}
    assert auxiliary_weights(Parts(backbone=Parts(stem=nn.Linear(8, 8), fc=nn.Linear(8, 5)))) == {
        "backbone.fc"
    }


def test_a_trunk_called_net_keeps_its_last_layer() -> None:
    model = Parts(net=chain(8, 8, 8), head=nn.Linear(8, 2))
    assert directions(model)["net.2.weight"] == "muon"
    assert directions(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))["1.weight"] == "adamw"


@pytest.mark.requirement("C10")
@pytest.mark.parametrize(
    ("model", "head"),
    [
        (Parts(conv=nn.Conv2d(3, 8, 3), fc1=nn.Linear(8, 8), fc2=nn.Linear(8, 4)), "fc2"),
        (Parts(layers=nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)])), "layers.2"),
        (Parts(blocks=nn.ModuleList([Block(), Block()]), last=nn.Linear(8, 4)), "last"),
        (Parts(policy=Parts(fc1=nn.Linear(8, 8), fc2=nn.Linear(8, 4))), "policy.fc2"),
    ],
    ids=["lenet", "list", "blocks", "deeper"],
)
def test_plain_networks_end_in_their_last_linear_layer_and_the_report_says_so(
    model: nn.Module, head: str
) -> None:
    assert auxiliary_weights(model) == {head}
    groups = param_groups(model)
    assert f"{head!r} was taken for the output head" in report(groups).splitlines()[-1]
    assert report(groups).splitlines()[-2].endswith("adamw")
    chosen = param_groups(model, overrides=[(f"{head}.weight", "muon")])
    assert all(name.endswith("bias") for g in chosen if g["direction"] == "adamw" for name, _ in g["params"])


@pytest.mark.requirement("C10")
def test_nothing_is_guessed_where_the_end_is_no_head() -> None:
    class SaysItHasNone(Parts):
        def get_classifier(self) -> nn.Module:
            return nn.Identity()

    attention = nn.MultiheadAttention(8, 2)
    for model in (
        SaysItHasNone(fc1=nn.Linear(8, 8), fc2=nn.Linear(8, 8)),
        Parts(embed=nn.Linear(8, 8), blocks=nn.ModuleList([Block(), Block()])),
        Parts(proj=nn.Linear(8, 8), attention=attention),
        nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]),
        nn.Linear(8, 8),
        Parts(base=nn.Linear(8, 8).requires_grad_(False), lora_B=nn.Linear(2, 8)),
    ):
        assert auxiliary_weights(model) == set(), model
        assert param_groups(model).notes == ()


def test_a_frozen_guess_is_not_mentioned() -> None:
    model = Parts(fc1=nn.Linear(8, 8), fc2=nn.Linear(8, 4).requires_grad_(False))
    assert param_groups(model).notes == ()


def test_heads_with_weights_of_their_own() -> None:
    class Codebooks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 8, 5))

    model = Parts(trunk=nn.Linear(8, 8), codebooks_head=Codebooks())
    assert directions(model)["codebooks_head.weight"] == "adamw"
