import math

import numpy as np
import pytest

from minires import models, nn
from minires.autograd import Tensor
from minires.data import Dataset, digits
from minires.training import Normalization, evaluate


class Table(nn.Module):
    """Gives the logits that the first pixel of an image stands for."""

    def __init__(self, logits):
        super().__init__()
        self.logits = np.asarray(logits, np.float32)

    def forward(self, x):
        rows = np.rint(x.numpy()[:, 0, 0, 0] * 255).astype(int)
        return Tensor(self.logits[rows])


def numbered(labels, classes):
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Dataset(images, np.asarray(labels), classes)


def as_is():
    return Normalization(np.zeros(1, np.float32), np.ones(1, np.float32)).transform()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_by_hand(batch_size):
    logits = [[math.log(2), 0, 0], [0, 0, math.log(2)], [0, math.log(6), 0], [0, 0, math.log(2)]]
    dataset = numbered([0, 0, 1, 2], ["a", "b", "c"])
    result = evaluate(Table(logits), dataset, as_is(), batch_size=batch_size)
    # Probabilities of the right class: 2/4, 1/4, 6/8, 2/4.
    assert result.loss == pytest.approx(-math.log(0.5 * 0.25 * 0.75 * 0.5) / 4, rel=1e-6)
    assert result.accuracy == 0.75
    np.testing.assert_array_equal(result.confusion, [[1, 0, 1], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(result.class_accuracy, [0.5, 1, 1])
    assert result.mistaken_for(0) == (2, 1)
    assert result.mistaken_for(1) is None
    assert result.images == 4


def test_a_class_without_images():
    result = evaluate(Table([[1, 0, 0]]), numbered([0], ["a", "b", "c"]), as_is())
    np.testing.assert_array_equal(result.class_accuracy, [1, np.nan, np.nan])


def test_batch_size_changes_nothing_on_a_real_net():
    test = digits("test").take(50)
    model = models.create("resnet20", num_classes=10, in_channels=1, width=4)
    transform = Normalization.fit("channels", test).transform()
    whole, parts = (evaluate(model, test, transform, batch_size=n) for n in (50, 7))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    np.testing.assert_array_equal(parts.confusion, whole.confusion)


def test_evaluation_mode_inside_and_modes_as_before_outside():
    model = models.create("resnet20", num_classes=10, in_channels=1, width=4)
    model.bn1.eval()
    before = [module.training for module in model.modules()]
    mean = model.layer1[0].bn1.running_mean.numpy().copy()
    test = digits("test").take(9)
    evaluate(model, test, Normalization.fit("channels", test).transform())
    assert [module.training for module in model.modules()] == before
    np.testing.assert_array_equal(model.layer1[0].bn1.running_mean.numpy(), mean)


def test_wrong_number_of_classes():
    with pytest.raises(ValueError, match=r"the model gives 1x2 for 1 images; expected 1x3"):
        evaluate(Table([[1, 0]]), numbered([0], ["a", "b", "c"]), as_is())


def test_no_images():
    empty = numbered([0], ["a"]).take(0)
    with pytest.raises(ValueError, match="has no images"):
        evaluate(Table([[1]]), empty, as_is())
