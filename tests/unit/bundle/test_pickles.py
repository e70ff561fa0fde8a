"""What a pickle would import is known before anything of it is loaded, whatever it does to hide it."""

import io
import os
import pickle
import pickletools
import struct
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.gadgets import denied
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.pickles import Scan, scan, scan_bytes, split
from loopwright.bundle.trust import TrustRecord, load_trusted, sign_trust
from loopwright.kernel.errors import BadInput, LoopwrightError, Refused

KEY = SigningKey.generate()


def text(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def stack_global(module: str, name: str) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93"


class Runs:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def forced(data: bytes, found: Scan | None = None) -> Any:
    """Load under a record that allows everything the file names: whoever signed it did not look."""
    globals_ = (found or scan_bytes(data)).globals
    record = TrustRecord(
        digest=scan_bytes(data).digest, globals=globals_, requested_by="a", approved_by="b", reason="r", at=""
    )
    return load_trusted(data, sign_trust(record, KEY), [KEY.public])


TRACE = "echo ran > {}"

ATTACKS = {
    "os.system by reduce": lambda t: pickle.dumps(Runs(os.system, t)),
    "in protocol 0": lambda t: pickle.dumps(Runs(os.system, t), 0),
    "in protocol 2": lambda t: pickle.dumps(Runs(os.system, t), 2),
    "posix by another name": lambda t: b"cposix\nsystem\n(V" + t.encode() + b"\ntR.",
    "nt": lambda t: b"cnt\nsystem\n(V" + t.encode() + b"\ntR.",
    "python 2's builtins": lambda t: b"c__builtin__\neval\n(V__import__('os').system('" + t.encode() + b"')\ntR.",
    "python 2's commands": lambda t: b"ccommands\ngetoutput\n(V" + t.encode() + b"\ntR.",
    "getattr on a module": lambda t: (
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVsystem\ntR(V" + t.encode() + b"\ntR."
    ),
    "inst": lambda t: b"(V" + t.encode() + b"\nios\nsystem\n.",
    "obj": lambda t: b"(cos\nsystem\nV" + t.encode() + b"\no.",
    "stack global from the memo": lambda t: (
        b"\x80\x04" + text("os") + b"\x940" + text("system") + b"\x940h\x00h\x01\x93" + text(t) + b"\x85R."
    ),
    "stack global by a duplicate": lambda t: (
        b"\x80\x04" + text("system") + text("os") + b"\x94" + b"20h\x000" + text("os") + text("system") + b"\x93"
        + text(t) + b"\x85R."
    ),
    "stack global of a computed name": lambda t: (
        # str.format is never needed: a name made by any call is a name nobody can read.
        b"\x80\x04" + text("os") + stack_global("builtins", "str")[2:] + text("system") + b"\x85R\x93"
        + text(t) + b"\x85R."
    ),
    "a dotted name": lambda t: stack_global("numpy", "os.system") + text(t) + b"\x85R.",
    "subclasses": lambda t: stack_global("builtins", "object.__subclasses__") + b")R.",
    "a module out of another": lambda t: stack_global("shutil", "os") + b".",
    "pickle within bytes": lambda t: (
        stack_global("pickle", "loads") + b"C" + bytes([len(pickle.dumps(Runs(os.system, t)))])
        + pickle.dumps(Runs(os.system, t)) + b"\x85R."
    ),
    "bytes waiting to be loaded": lambda t: pickle.dumps({"later": pickle.dumps(Runs(os.system, t))}),
    "functools.partial": lambda t: b"cfunctools\npartial\n(cos\nsystem\nV" + t.encode() + b"\ntR.",
    "operator.methodcaller": lambda t: b"coperator\nmethodcaller\n(Vx\ntR.",
    "operator.attrgetter": lambda t: b"c_operator\nattrgetter\n(Vx\ntR.",
    "numpy.load": lambda t: b"cnumpy\nload\n(Vx\ntR.",
    "numpy runstring": lambda t: b"cnumpy.testing._private.utils\nrunstring\n(Vimport os\n}tR.",
    "joblib.load": lambda t: b"cjoblib\nload\n(Vx\ntR.",
    "importlib": lambda t: b"cimportlib\nimport_module\n(Vos\ntR.",
    "ctypes": lambda t: b"cctypes\nCDLL\n(Nt R.".replace(b" ", b""),
    "socket": lambda t: b"csocket\ncreate_connection\n((Vx\nI1\nttR.",
    "our own functions": lambda t: b"cloopwright.bundle.transform\nload_transform\n(V1/0\ntR.",
    "a call of what a call returned": lambda t: b"ccollections\nOrderedDict\n)R)R.",
    "an imported class is changed": lambda t: b"ccollections\nOrderedDict\n}Vcopy\ncbuiltins\nlist\nsb.",
    "an imported class's slots are changed": lambda t: b"ccollections\nOrderedDict\n(N}Vcopy\ncbuiltins\nlist\nstb.",
    "persistent id": lambda t: b"Pos.system\n.",
    "binary persistent id": lambda t: b"Vx\nQ.",
    "extension registry": lambda t: b"\x80\x02\x82\x01.",
    "out-of-band buffer": lambda t: b"\x80\x05\x97.",
    "a second pickle behind the first": lambda t: pickle.dumps(1) + pickle.dumps(Runs(os.system, t)),
    "a memo bomb": lambda t: b"Nr\xff\xff\xff\x7f.",
    "a huge length": lambda t: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
    "a huge frame": lambda t: b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "marks without end": lambda t: b"(" * 5_000 + b"." ,
    "cut short": lambda t: pickle.dumps({"a": list(range(100))})[:-20],
    "no stop": lambda t: b"\x80\x04N",
    "a memo that was never written": lambda t: b"\x80\x04h\x07.",
    "a stack that runs empty": lambda t: b"\x80\x04R.",
    "two values at the end": lambda t: b"\x80\x04NN.",
    "an unknown opcode": lambda t: b"\x80\x04\xfe.",
    "a name with a line feed": lambda t: stack_global("os\n", "system") + b".",
    "look-alike letters": lambda t: stack_global("оs", "system") + b".",  # a Cyrillic o
    "no name": lambda t: stack_global("os", "") + b".",
    "nothing": lambda t: b"",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=ATTACKS.keys())
def test_what_could_do_harm_is_found_by_the_scan_and_not_loaded_whoever_signed_it(
    attack: str, tmp_path: Path
) -> None:
    trace = tmp_path / "ran"
    data = ATTACKS[attack](TRACE.format(trace))
    found = scan_bytes(data)
    assert found.objections, attack
    with pytest.raises(LoopwrightError):
        forced(data, found)
    assert not trace.exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Else the test above would show nothing: plain pickle runs what it is given."""
    for attack in ("os.system by reduce", "stack global from the memo", "getattr on a module", "inst", "obj"):
        trace = tmp_path / attack.replace(" ", "-")
        pickle.loads(ATTACKS[attack](TRACE.format(trace)))
        assert trace.exists(), attack


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_names_the_same_globals(protocol: int) -> None:
    from collections import OrderedDict, deque

    found = scan_bytes(pickle.dumps([OrderedDict(a=1), deque([1])], protocol))
    assert found.format == "pickle"
    assert set(found.globals) == {"collections.OrderedDict", "collections.deque"}
    assert not found.objections


# max_leaves keeps the examples, and their reprs, small.
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=10,
)


@given(value=plain, protocol=st.integers(0, 5))
def test_plain_values_come_back_as_they_were(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found = scan_bytes(data)
    assert found.opcodes == sum(1 for _ in pickletools.genops(data))
    if protocol >= 4:  # before, bytes and sets are made by calls
        assert found.globals == ()
    assert not found.objections
    assert forced(data, found) == value


@given(st.binary(max_size=200))
def test_no_bytes_break_the_scan(data: bytes) -> None:
    found = scan_bytes(data)
    assert found.size == len(data)
    assert found.objections or forced(data, found) is not NotImplemented


@given(st.data())
def test_a_damaged_file_is_scanned_and_never_runs_what_was_not_seen(draw: st.DataObject) -> None:
    data = bytearray(pickle.dumps({"a": [1, 2, (3, "x")], "b": np.arange(4.0)}))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    found = scan_bytes(bytes(data))
    if not found.objections:
        with suppress(LoopwrightError):
            forced(bytes(data), found)


def test_a_name_that_leads_elsewhere_than_it_says_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    innocent = ModuleType("innocent")
    innocent.__dict__.update(helper=os.system, tools=os, number=3)
    monkeypatch.setitem(sys.modules, "innocent", innocent)
    for name in ("helper", "tools", "number"):
        data = b"cinnocent\n" + name.encode() + b"\n."
        assert not scan_bytes(data).objections, "a scan imports nothing, so it cannot know"
        with pytest.raises(Refused, match=f"does not import innocent.{name}"):
            forced(data)


# Joblib.


def dumped(value: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    joblib.dump(value, stream, **how)
    return stream.getvalue()


ARRAYS = {
    "floats": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "texts": np.array(["a", "lang"]),
    "objects": np.array(["a", None, 3], dtype=object),
    "record": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "record of records": np.zeros(3, dtype=[("a", [("x", "i2"), ("y", "O")]), ("b", "f4", (2,))]),
    "empty": np.empty((0, 3)),
    "no dimension": np.array(3.5),
    "big endian": np.arange(3, dtype=">i4"),
    "times": np.array(["2013-01-01"], dtype="M8[D]"),
    "bits": np.array([True, False]),
}


@pytest.mark.parametrize("how", [{}, {"compress": 3}, {"compress": ("gzip", 3)}, {"protocol": 2}], ids=str)
@pytest.mark.parametrize("name", ARRAYS)
def test_joblibs_arrays_are_stepped_over_and_come_back(name: str, how: dict[str, Any]) -> None:
    array = ARRAYS[name]
    data = dumped({"before": 1, "array": array, "after": np.arange(3)}, **how)
    found = scan_bytes(data)
    assert found.format.startswith("joblib")
    assert not found.objections
    back = forced(data, found)["array"]
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.shape == array.shape
    assert np.array_equal(back, array)


def test_an_array_that_claims_another_size_than_its_type_hides_nothing(tmp_path: Path) -> None:
    """The scan would step over as data what the loader reads as opcodes."""
    good = dumped(np.zeros(3, dtype=[("a", "i8"), ("b", "i8")]))
    state = b"K\x10K\x01"  # item size 16, alignment 1, in the type's state
    assert good.count(state) == 1
    data = good.replace(state, b"K\x08K\x01")
    with pytest.raises(LoopwrightError):
        forced(data)


def test_code_among_an_arrays_objects_is_found(tmp_path: Path) -> None:
    array = np.array([Runs(os.system, TRACE.format(tmp_path / "ran"))], dtype=object)
    found = scan_bytes(dumped(array))
    assert any("posix.system" in why for why in found.denied)


def test_an_array_larger_than_the_file_is_refused_before_memory_is_asked_for() -> None:
    data = dumped(np.arange(300.0)).replace(b"M,\x01\x85", b"J\xff\xff\xff\x7f\x85")
    assert any("where the file ends before" in why for why in scan_bytes(data).objections)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"PK\x03\x04rest", "npz or zip"),
        (b"\x93NUMPY\x01\x00", "npy"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"BZh9", "bz2"),
        (zlib.compress(pickle.dumps(1))[:-3], "compressed"),
        (zlib.compress(pickle.dumps(1)) + b"more", "compressed"),
    ],
)
def test_files_of_other_kinds_are_named_and_never_trusted(data: bytes, kind: str) -> None:
    found = scan_bytes(data)
    assert found.format == kind
    assert found.objections


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        scan(tmp_path / "model.pkl")
    with pytest.raises(BadInput, match="no such file"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "getattr"), ("builtins", "type"), ("os.path", "join"), ("numpy.f2py", "compile"),
        ("sklearn.datasets", "fetch_openml"), ("joblib.numpy_pickle", "load"), ("a.b", "c.d"), ("", "x"), ("a b", "c"),
        ("any.module", "__import__"), ("functools", "reduce"), ("types", "FunctionType"), ("_pickle", "loads"),
    ],
)  # fmt: skip
def test_some_names_nobody_can_allow(module: str, name: str) -> None:
    assert denied(module, name)


@pytest.mark.parametrize(
    "name",
    ["numpy.ndarray", "sklearn.tree._tree.Tree", "builtins.set", "_codecs.encode", "copyreg._reconstructor"],
)
def test_what_plain_models_need_is_open_to_a_decision(name: str) -> None:
    assert denied(*split(name)) == ""
