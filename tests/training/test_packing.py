import json

import numpy as np
import pytest

from minires.autograd import Tensor
from minires.training.packing import pack, unpack


def test_round_trip_through_json():
    state = {
        "state": {0: {"momentum_buffer": np.arange(3.0)}, 10: {"step": 4}},
        "groups": [{"lr": 0.1, "params": (0, 1), "nesterov": True, "name": None}],
        "tensor": Tensor(np.ones((2, 2), np.float32)),
        "number": np.float64(0.1),
    }
    arrays = {}
    packed = json.loads(json.dumps(pack(state, "opt", arrays)))
    assert sorted(arrays) == ["opt.state.0.momentum_buffer", "opt.tensor"]
    back = unpack(packed, arrays)
    assert list(back["state"]) == [0, 10]  # the keys stay integers
    np.testing.assert_array_equal(back["state"][0]["momentum_buffer"], np.arange(3.0))
    assert back["state"][10] == {"step": 4}
    assert back["groups"] == [{"lr": 0.1, "params": [0, 1], "nesterov": True, "name": None}]
    np.testing.assert_array_equal(back["tensor"], np.ones((2, 2)))
    assert back["number"] == 0.1


def test_what_cannot_be_kept():
    with pytest.raises(TypeError, match=r"opt\.f: cannot keep a builtin_function_or_method"):
        pack({"f": len}, "opt", {})
