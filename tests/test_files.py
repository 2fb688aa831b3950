"""Atomic writes, safetensors, and the restricted readers of other people's pickles."""

from __future__ import annotations

import collections
import io
import os
import pickle
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from minires.files import (
    atomic_write,
    atomic_write_text,
    load_file,
    load_pickle_restricted,
    read_metadata,
    save_file,
)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


class TestAtomicWrite:
    def test_new_name_appears_only_at_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.bin"
        with atomic_write(path) as file:
            file.write(b"abc")
            assert not path.exists()
        assert path.read_bytes() == b"abc"
        assert os.listdir(tmp_path) == ["weights.bin"]

    def test_an_error_keeps_the_old_file_and_leaves_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.bin"
        path.write_bytes(b"old")

        def crash() -> None:
            with atomic_write(path) as file:
                file.write(b"half of the new")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            crash()
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["weights.bin"]

    def test_replaces_and_syncs_file_and_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        path = tmp_path / "a.json"
        path.write_bytes(b"old, and longer than the new")
        atomic_write_text(path, "né\n")
        assert path.read_bytes() == b"n\xc3\xa9\n"
        assert synced == [False, True]

    def test_mode_follows_the_umask(self, tmp_path: Path) -> None:
        atomic_write_text(tmp_path / "a", "x")
        (tmp_path / "b").write_text("x")
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode

    def test_missing_folder_and_folder_as_target(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"folder .*absent does not exist"):
            atomic_write_text(tmp_path / "absent" / "a", "x")
        with pytest.raises(IsADirectoryError, match="is a folder"):
            atomic_write_text(tmp_path, "x")
        assert os.listdir(tmp_path) == []


class TestSafetensors:
    def test_round_trip_of_every_dtype_and_odd_strides(self, tmp_path: Path) -> None:
        base = np.arange(24.0).reshape(2, 3, 4)
        state = {
            "fortran": np.asfortranarray(base[0]),
            "transposed": base.transpose(2, 0, 1),
            "reversed": base[:, ::-1, ::2],
            "broadcast": np.broadcast_to(np.float32(3), (2, 2)),
            "big_endian": base.astype(">f4"),
            "zero_d": np.array(7, np.int64),
            "scalar": np.float32(2.5),
            "empty": np.zeros((0, 3), np.float32),
            "bool": np.array([True, False]),
            "complex": np.array([1 + 2j], np.complex64),
            **{code: np.array([0, 1, 100], code) for code in "bhiqBHIQefd"},
        }
        save_file(tmp_path / "w", state)
        loaded = load_file(tmp_path / "w")
        assert set(loaded) == set(state)
        for name, value in state.items():
            assert loaded[name].dtype == np.asarray(value).dtype.newbyteorder("="), name
            assert loaded[name].shape == np.shape(value), name
            assert np.array_equal(loaded[name], value), name
            assert loaded[name].flags.c_contiguous, name
            assert loaded[name].flags.writeable, name

    def test_values_with_a_numpy_method(self, tmp_path: Path) -> None:
        class Tensor:
            def numpy(self) -> np.ndarray:
                return np.arange(3.0)

        save_file(tmp_path / "w", {"a": Tensor()})
        assert same(load_file(tmp_path / "w")["a"], np.arange(3.0))

    def test_metadata_and_equal_bytes_whatever_the_order(self, tmp_path: Path) -> None:
        text = {key: f"{key} é" for key in "zyxwvutsrq"}
        state = {"a": np.arange(5.0), "b": np.ones((2, 2), np.float32)}
        save_file(tmp_path / "1", state, text)
        save_file(tmp_path / "2", dict(reversed(state.items())), dict(reversed(text.items())))
        assert read_metadata(tmp_path / "1") == text
        assert list(read_metadata(tmp_path / "1")) == sorted(text)
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
        assert all(same(load_file(tmp_path / "1")[name], state[name]) for name in state)
        save_file(tmp_path / "3", state)
        assert read_metadata(tmp_path / "3") == {}
        # The library's own reader agrees that the rewritten header is sound and aligned.
        from safetensors.numpy import load_file as library_load

        assert same(library_load(tmp_path / "1")["a"], state["a"])
        assert int.from_bytes((tmp_path / "1").read_bytes()[:8], "little") % 8 == 0

    def test_bfloat16_is_widened(self, tmp_path: Path) -> None:
        header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
        bits = struct.pack("<HH", 0x3FC0, 0xC000)  # 1.5 and -2
        (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + bits)
        assert same(load_file(tmp_path / "w")["a"], np.array([1.5, -2], np.float32))

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({"a": [1.0]}, "a must be an array, got list"),
            ({3: np.ones(1)}, "names must be str, got 3"),
            ({"a": np.array([None])}, "a has dtype object"),
            ({"a": np.ones(1, np.complex128)}, "a has dtype complex128"),
        ],
    )
    def test_what_cannot_be_written(self, tmp_path: Path, state: dict, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            save_file(tmp_path / "w", state)
        assert os.listdir(tmp_path) == []

    def test_bad_metadata_and_reserved_name(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="metadata must map str to str"):
            save_file(tmp_path / "w", {"a": np.ones(1)}, {"epoch": 3})
        with pytest.raises(ValueError, match="reserved"):
            save_file(tmp_path / "w", {"__metadata__": np.ones(1)})

    def test_missing_folder_when_writing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="absent does not exist"):
            save_file(tmp_path / "absent" / "w", {"a": np.ones(1)})

    @pytest.mark.parametrize("read", [load_file, read_metadata])
    def test_missing_file_and_folder_when_reading(self, tmp_path: Path, read) -> None:
        with pytest.raises(FileNotFoundError, match=r"no file .*w\.safetensors"):
            read(tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match="is a folder"):
            read(tmp_path)

    @pytest.mark.parametrize("read", [load_file, read_metadata])
    @pytest.mark.parametrize("damage", ["empty", "header", "data", "garbage"])
    def test_damaged_files(self, tmp_path: Path, read, damage: str) -> None:
        path = tmp_path / "w.safetensors"
        save_file(path, {"a": np.arange(10.0)})
        whole = path.read_bytes()
        cut = {"empty": b"", "header": whole[:20], "data": whole[:-1], "garbage": b"\x07garb" * 50}
        path.write_bytes(cut[damage])
        with pytest.raises(ValueError, match=r"w\.safetensors .* bytes\) is not a whole"):
            read(path)


class Calls:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


class Builds:
    """Pickles as a call, followed by a state that the reader must give to the result."""

    def __init__(self, function, args, state) -> None:
        self.build = function, args, state

    def __reduce__(self):
        return self.build


def restricted(data: bytes, **options) -> object:
    return load_pickle_restricted(io.BytesIO(data), **options)


class TestRestrictedPickle:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_arrays_and_containers(self, protocol: int) -> None:
        shared = np.arange(6, dtype=np.float32).reshape(2, 3)
        written = {
            "c": shared,
            "list": [shared, (1, "é", None, True, 2.5, 10**30)],
            "fortran": np.asfortranarray(shared),
            "big": np.arange(3, dtype=">i2"),
            "zero_d": np.array(3.0),
            "empty": np.zeros((0, 2), np.uint8),
            "text": np.array(["ab", "c"]),
            "bytes": [b"\x00\xff", b""],
            "scalar": np.float64(1.5),
            "dtype": np.dtype("<i4"),
            "set": {1, 2},
            "frozen": frozenset({3}),
            "complex": 1 + 2j,
            "ordered": collections.OrderedDict(b=1, a=2),
        }
        read = restricted(pickle.dumps(written, protocol))
        assert list(read) == list(written)
        for name in ("c", "fortran", "big", "zero_d", "empty", "text"):
            assert type(read[name]) is np.ndarray
            assert same(read[name], written[name]), name
        assert same(read["list"][0], shared)
        assert read["list"][1] == written["list"][1]
        for name in ("bytes", "scalar", "dtype", "set", "frozen", "complex", "ordered"):
            assert read[name] == written[name], name
        assert type(read["ordered"]) is dict
        assert list(read["ordered"]) == ["b", "a"]
        assert type(read["scalar"]) is np.float64

    def test_shared_and_cyclic_containers(self) -> None:
        cyclic: list = [1]
        cyclic.append(cyclic)
        read = restricted(pickle.dumps(cyclic))
        assert read[1] is read
        bomb: list = []
        for _ in range(60):  # 2**60 leaves if what is shared were visited more than once
            bomb = [bomb, bomb]
        read = restricted(pickle.dumps(bomb))
        assert read[0] is read[1]

    def test_python_2(self) -> None:
        # Protocol 2 as Python 2 writes CIFAR's batches: names and pixels are `str` opcodes.
        pixels = bytes([0, 127, 128, 255])
        data = (
            b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
            b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x02\x86"
            b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xff"
            b"J\xff\xff\xff\xffK\x00tb\x89U\x04" + pixels + b"tbU\x06labelsq\x08]q\x09K\x07au."
        )
        for encoding, key in (("latin1", "data"), ("bytes", b"data")):
            read = restricted(data, encoding=encoding)
            assert same(read[key], np.array([[0, 127], [128, 255]], np.uint8))
            assert list(read.values())[1] == [7]

    def test_path_and_open_file(self, tmp_path: Path) -> None:
        path = tmp_path / "p"
        path.write_bytes(pickle.dumps([1, 2]))
        assert load_pickle_restricted(path) == [1, 2]
        with open(path, "rb") as file:
            assert load_pickle_restricted(file) == [1, 2]
            assert not file.closed
        with pytest.raises(FileNotFoundError):
            load_pickle_restricted(tmp_path / "absent")

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_nothing_is_run(self, tmp_path: Path, protocol: int) -> None:
        witness = tmp_path / "witness"
        data = pickle.dumps({"x": Calls(os.system, f"touch {witness}")}, protocol)
        with pytest.raises(ValueError, match=r"asks for (posix|nt)\.system, which is not allowed"):
            restricted(data)
        assert not witness.exists()
        pickle.loads(data)
        assert witness.exists()  # the pickle was indeed malicious

    @pytest.mark.parametrize(
        ("name", "call"),
        [
            ("builtins.eval", Calls(eval, "1")),
            ("builtins.getattr", Calls(getattr, "a", "upper")),
            ("collections.Counter", collections.Counter("ab")),
            ("pathlib", Path("a")),
            ("numpy.load", Calls(np.load, "a.npy", None, True)),
            ("test_files.Calls", Calls),
        ],
    )
    def test_the_forbidden_name_is_told(self, tmp_path: Path, name: str, call: object) -> None:
        (tmp_path / "p.pkl").write_bytes(pickle.dumps(call))
        with pytest.raises(ValueError, match=rf"p\.pkl: the pickle asks for {name}.*not allowed"):
            load_pickle_restricted(tmp_path / "p.pkl")

    def test_dotted_names_reach_nothing(self) -> None:
        # Protocol 4 can ask for attributes: numpy.dtype's `__class__`, say.
        data = b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93."
        with pytest.raises(ValueError, match=r"numpy\.dtype\.__class__, which is not allowed"):
            restricted(data)

    def test_object_arrays_and_records_are_refused(self) -> None:
        for array in (np.array([None]), np.zeros(2, [("a", "i4")]), np.zeros(1, "M8[s]")):
            with pytest.raises(ValueError, match="only numbers are read"):
                restricted(pickle.dumps(array))

    def test_crafted_states(self) -> None:
        dtype, reconstruct = np.dtype, np._core.multiarray._reconstruct
        number = Calls(dtype, "f8")
        cases = [
            # A dtype whose state claims other contents: NumPy's own reader would believe it.
            (Builds(dtype, ("O",), (3, "|", None, None, None, 8, 8, 0)), "only numbers"),
            (
                Builds(reconstruct, (np.ndarray, (0,), b"b"), (1, (2,), number, False, b"short")),
                "damaged",
            ),
            (
                Builds(reconstruct, (np.ndarray, (0,), b"b"), (1, (2,), number, False, 10**6)),
                "data is of type int",
            ),
            (np.dtype, "not data"),
        ]
        for case, message in cases:
            with pytest.raises(ValueError, match=message):
                restricted(pickle.dumps(case))
        # BUILD on a permitted function must not change it for later readers.
        change = b"\x80\x02cnumpy\ndtype\n}U\x03fooK\x01sb."
        with pytest.raises(ValueError, match="change a function"):
            restricted(change)

    @pytest.mark.parametrize("data", [b"", b"garbage", b"\x80\x04]", b"\x80\x02cnumpy\n"])
    def test_damaged(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="not a pickle, or a damaged one"):
            restricted(data)
        with pytest.raises(ValueError, match="damaged"):
            restricted(pickle.dumps(np.arange(100.0))[:-20])


def torch_state(torch) -> dict:
    """Tensors of every dtype that is read, and the odd ones: views, strides, no elements, 0-d."""
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = collections.OrderedDict(
        base=base,
        view=base[1:, ::2],
        transposed=base.permute(2, 0, 1),
        expanded=torch.tensor([[5.0]]).expand(2, 3),
        zero_d=torch.tensor(7),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    real = ["float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    for name in [*real, "complex64", "complex128"]:
        state[name] = torch.tensor([0, 1, 100]).to(getattr(torch, name))
    return state


@pytest.mark.parametrize("zipped", [True, False])
class TestPyTorchFiles:
    def save(self, path: Path, content: object, zipped: bool) -> None:
        torch = pytest.importorskip("torch")
        torch.save(content, path, _use_new_zipfile_serialization=zipped)

    def test_every_dtype_and_stride(self, tmp_path: Path, zipped: bool) -> None:
        torch = pytest.importorskip("torch")
        state = torch_state(torch)
        self.save(tmp_path / "w.pt", state, zipped)
        loaded = load_file(tmp_path / "w.pt")
        assert list(loaded) == list(state)
        for name, tensor in state.items():
            assert same(loaded[name], tensor.detach().numpy()), name
            assert loaded[name].flags.c_contiguous, name
            assert loaded[name].flags.writeable, name
            assert loaded[name].flags.owndata, name

    def test_bfloat16_is_widened(self, tmp_path: Path, zipped: bool) -> None:
        torch = pytest.importorskip("torch")
        self.save(tmp_path / "w", {"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, zipped)
        assert same(load_file(tmp_path / "w")["a"], np.array([1.5, -2.0], np.float32))

    def test_wrapper_and_module_prefix(self, tmp_path: Path, zipped: bool) -> None:
        torch = pytest.importorskip("torch")
        net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        state = net.state_dict()  # an OrderedDict with _metadata
        wrapped = {f"module.{name}": value for name, value in state.items()}
        self.save(tmp_path / "w", {"state_dict": wrapped, "best": 91.8, "epoch": 3}, zipped)
        loaded = load_file(tmp_path / "w")
        assert list(loaded) == list(state)
        assert all(same(loaded[name], value.numpy()) for name, value in state.items())
        self.save(tmp_path / "w", {"module.a": torch.ones(1), "b": torch.ones(1)}, zipped)
        assert set(load_file(tmp_path / "w")) == {"module.a", "b"}

    def test_other_contents(self, tmp_path: Path, zipped: bool) -> None:
        torch = pytest.importorskip("torch")
        self.save(tmp_path / "w", [torch.ones(1)], zipped)
        with pytest.raises(ValueError, match="expected a dict of tensors, found list"):
            load_file(tmp_path / "w")
        self.save(tmp_path / "w", {"a": torch.ones(1), "epoch": 3}, zipped)
        with pytest.raises(ValueError, match=r"none: epoch\. Save only model\.state_dict"):
            load_file(tmp_path / "w")
        self.save(tmp_path / "w", torch.nn.Linear(2, 3), zipped)
        with pytest.raises(ValueError, match=r"not allowed|outside itself"):
            load_file(tmp_path / "w")

    def test_nothing_is_run(self, tmp_path: Path, zipped: bool) -> None:
        witness = tmp_path / "witness"
        self.save(tmp_path / "w", {"x": Calls(os.system, f"touch {witness}")}, zipped)
        with pytest.raises(ValueError, match=r"\.system, which is not allowed"):
            load_file(tmp_path / "w")
        assert not witness.exists()

    def test_truncated(self, tmp_path: Path, zipped: bool) -> None:
        torch = pytest.importorskip("torch")
        self.save(tmp_path / "w", {"a": torch.arange(100.0), "b": torch.ones(3)}, zipped)
        whole = (tmp_path / "w").read_bytes()
        for length in (20, len(whole) // 2, len(whole) - 3):
            (tmp_path / "cut").write_bytes(whole[:length])
            with pytest.raises(ValueError, match="cut"):
                load_file(tmp_path / "cut")


def opcodes(value: object) -> bytes:
    """Pickle opcodes (protocol 2) for a value; bytes are opcodes already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value)) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    return b"(" + b"".join(map(opcodes, value)) + b"t"


def storage(elements: int, kind: str = "FloatStorage") -> bytes:
    kind_name = f"ctorch\n{kind}\n".encode()
    return opcodes(("storage", kind_name, "0", "cpu", elements)) + b"Q"


def tensor(*args: object) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + opcodes((*args, 0, ())) + b"R"


def write_zip(path: Path, value: bytes, data: bytes, byteorder: bytes = b"little") -> None:
    """What `torch.save({"a": value}, path)` writes, with one storage."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}" + opcodes("a") + value + b"s.")
        archive.writestr("w/byteorder", byteorder)
        archive.writestr("w/data/0", data)


class TestCraftedPyTorchFiles:
    """Files that torch would not write, made by hand; these run without torch."""

    DATA = np.arange(6, dtype="<f4").tobytes()

    def test_a_sound_one(self, tmp_path: Path) -> None:
        write_zip(tmp_path / "w", tensor(storage(6), 1, (2, 2), (2, 1)), self.DATA)
        expected = np.array([[1, 2], [3, 4]], np.float32)
        assert same(load_file(tmp_path / "w")["a"], expected)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (tensor(storage(6), 3, (2, 2), (2, 1)), "reaches past its storage of 6 elements"),
            (tensor(storage(6), 0, (2, 2), (2, -1)), r"stride \(2, -1\)"),
            (tensor(storage(6), -1, (2, 2), (2, 1)), "offset -1"),
            (tensor(storage(6), 0, (2, 2), (1,)), r"stride \(1,\)"),
            (tensor(storage(600), 0, (2, 2), (2, 1)), "24 bytes, expected 2400"),
            (tensor(storage(6, "QInt8Storage"), 0, (2,), (1,)), r"torch\.QInt8Storage, which is"),
            (opcodes(("module", "Net")) + b"Q", "an object outside itself"),
            # One element seen 1000 times is no storage of 1000: that would read foreign memory.
            (tensor(tensor(storage(6), 0, (1000,), (0,)), 0, (1000,), (1,)), "than a storage"),
        ],
    )
    def test_numbers_that_do_not_fit(self, tmp_path: Path, value: bytes, message: str) -> None:
        write_zip(tmp_path / "w", value, self.DATA)
        with pytest.raises(ValueError, match=message):
            load_file(tmp_path / "w")

    def test_other_archives(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "w", "w") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.raises(ValueError, match=r"holds no data\.pkl"):
            load_file(tmp_path / "w")
        write_zip(tmp_path / "w", tensor(storage(6), 1, (2,), (1,)), self.DATA, b"big")
        with pytest.raises(ValueError, match="big-endian"):
            load_file(tmp_path / "w")
