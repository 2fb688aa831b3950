"""Models by name."""

from typing import TypedDict, Unpack

import pytest

from minires import models, nn
from minires.models import registry

NAMES = [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "plain18", "plain34",
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
    "plain20", "plain32", "plain44", "plain56", "plain110",
]  # fmt: skip


class _Settings(TypedDict, total=False):
    num_classes: int


@pytest.fixture
def own_table(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_every_net_of_the_paper_is_listed():
    assert [name for name in models.list_models() if name in NAMES] == NAMES
    assert models.list_models("plain1*") == ["plain18", "plain110"]
    assert models.list_models("nothing*") == []


@pytest.mark.parametrize("name", NAMES)
def test_constructors_and_names_agree(name):
    with nn.init.skip_init():
        by_function = getattr(models, name)(num_classes=3)
        by_name = models.create(name, num_classes=3)
    assert repr(by_function) == repr(by_name)
    assert by_name.fc.weight.shape[0] == 3


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_the_papers(name):
    entry = models.entry(name)
    with nn.init.skip_init():
        model = entry.build()
    imagenet = name in NAMES[:7]
    assert entry.input_shape == ((3, 224, 224) if imagenet else (3, 32, 32))
    assert model.fc.weight.shape[0] == (1000 if imagenet else 10)
    assert model.conv1.kernel_size == ((7, 7) if imagenet else (3, 3))
    assert all(block.plain == name.startswith("plain") for block in model.blocks())
    kinds = {type(b.downsample).__name__ for b in model.blocks() if b.downsample is not None}
    if name.startswith("plain"):
        assert kinds == set()
    else:
        assert kinds == {"Sequential" if imagenet else "PadShortcut"}


@pytest.mark.parametrize(
    ("name", "guess"),
    [("resnt20", "resnet20"), ("ResNet18", "resnet18"), ("plane20", "plain20")],
)
def test_unknown_names_suggest_the_nearest(name, guess):
    for call in (models.create, models.entry, models.describe):
        with pytest.raises(
            ValueError, match=rf"unknown model '{name}'. Did you mean '{guess}'\? Known: .*plain18"
        ):
            call(name)


def test_unknown_options_suggest_the_nearest():
    with pytest.raises(
        TypeError, match=r"resnet20 takes no option 'num_clases'. Did you mean 'num_classes'\?"
    ):
        models.create("resnet20", num_clases=7)
    with pytest.raises(TypeError, match=r"plain20 takes no option 'shortcut'.* Known: num_classes"):
        models.create("plain20", shortcut="A")
    with pytest.raises(TypeError, match="resnet18 takes no option 'stride_on'"):
        models.create("resnet18", stride_on="1x1")


def test_options_of_each_kind():
    common = {"num_classes", "in_channels", "width"}
    assert set(models.entry("plain20").options) == common
    assert set(models.entry("resnet20").options) == common | {"shortcut", "zero_gamma"}
    bottleneck = common | {"shortcut", "zero_gamma", "stride_on"}
    assert set(models.entry("resnet152").options) == bottleneck


@pytest.mark.usefixtures("own_table")
def test_a_family_can_join():
    @models.register(input_shape=(1, 8, 8))
    def tinynet(*, num_classes: int = 10, width: int = 2) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))

    @models.register(input_shape=(1, 8, 8), name="tiny-2")
    def tiny_2(**options: Unpack[_Settings]) -> nn.Module:
        return tinynet(**options)

    assert models.list_models()[-2:] == ["tinynet", "tiny-2"]
    assert models.entry("tinynet").options == ("num_classes", "width")
    assert models.entry("tiny-2").options == ("num_classes",)
    assert models.create("tiny-2", num_classes=4)[2].weight.shape == (4, 2)
    assert models.describe("tinynet", width=3).parameters == 64 * 3 + 3 + 3 * 10 + 10
    with pytest.raises(TypeError, match="tiny-2 takes no option 'width'"):
        models.create("tiny-2", width=3)


@pytest.mark.usefixtures("own_table")
def test_a_name_used_again_is_replaced():
    before = len(models.list_models())

    @models.register(input_shape=(3, 32, 32), name="resnet20")
    def mine() -> nn.Module:
        return nn.Identity()

    assert len(models.list_models()) == before
    assert isinstance(models.create("resnet20"), nn.Identity)
