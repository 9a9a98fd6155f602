"""The structs that C and Python share: each field in its place, of its type."""

import ctypes

import pytest

from altcore.numerics.kernels import build, structs

pytestmark = pytest.mark.skipif(build.library() is None, reason="no C compiler")

FIELDS = [(name, field) for name, mirror in structs.MIRRORS.items() for field in mirror._fields_]


def changed(name, fields):
    """`structs.MIRRORS` with other fields in one of them."""
    other = type("Other", (ctypes.Structure,), {"_fields_": tuple(fields)})
    return {**structs.MIRRORS, name: other}


def test_both_sides_agree():
    assert structs.mismatch(build.library()) == ""


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=lambda v: v if isinstance(v, str) else v[0])
def test_no_field_may_differ(name, field, monkeypatch):
    """One that is missing, of another type, or in another place is told of."""
    fields = list(structs.MIRRORS[name]._fields_)
    at = fields.index(field)
    kind = ctypes.c_int32 if field[1] is ctypes.c_float else ctypes.c_float
    missing = fields[:at] + fields[at + 1 :]
    retyped = [*fields[:at], (field[0], kind), *fields[at + 1 :]]
    moved = [*missing, field] if at < len(fields) - 1 else [field, *missing]
    for others in (missing, retyped, moved):
        monkeypatch.setattr(structs, "MIRRORS", changed(name, others))
        assert structs.mismatch(build.library()).startswith(f"struct {name}, field ")
    monkeypatch.setattr(structs, "MIRRORS", changed(name, retyped))
    assert f"field {field[0]}: (" in structs.mismatch(build.library())


def test_a_swap_of_equal_fields(monkeypatch):
    """Two of one type that change places keep the size of the struct, and are found."""
    names = [n for n, _ in structs.Job._fields_]
    fields = list(structs.Job._fields_)
    a, b = names.index("lowest"), names.index("highest")
    fields[a], fields[b] = fields[b], fields[a]
    monkeypatch.setattr(structs, "MIRRORS", changed("job", fields))
    assert "struct job, field lowest" in structs.mismatch(build.library())


@pytest.mark.parametrize("name", structs.MIRRORS)
def test_a_field_that_c_does_not_have(name, monkeypatch):
    longer = [*structs.MIRRORS[name]._fields_, ("more", ctypes.c_int64)]
    monkeypatch.setattr(structs, "MIRRORS", changed(name, longer))
    assert f"struct {name}, field more: None in C" in structs.mismatch(build.library())


def test_a_field_that_nobody_lists(monkeypatch):
    """The size of the struct differs then."""
    fields, sizes = structs._layouts_of(build.library())
    monkeypatch.setattr(structs, "_layouts_of", lambda library: (fields, {**sizes, "job": 999}))
    assert "struct job has 999 bytes in C" in structs.mismatch(build.library())


def test_a_library_that_differs_is_not_used(monkeypatch):
    """Torch operations do its work, and a warning names the field."""
    monkeypatch.setattr(structs, "MIRRORS", changed("flips", structs.FlipsJob._fields_[1:]))
    with pytest.warns(RuntimeWarning, match=r"not available \(struct flips, field before"):
        assert build._library.__wrapped__() is None


def test_a_call_begins_a_job():
    assert structs.CALL.size == structs.Job.few.offset
