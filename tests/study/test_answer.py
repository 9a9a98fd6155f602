"""An answer is read only if it is one: a damaged or forged one is named, with the key."""

import json
from contextlib import suppress

import pytest
from helpers_studies import compare_answer, explain_answer

from altcore import BadInput
from altcore.errors import AltcoreError
from altcore.runs import with_digest
from altcore.study import answer, answers_in, load_answer
from altcore.study.answer import write

ANSWERS = {"explain": explain_answer, "compare": compare_answer}


def written(folder, answer):
    """Write an answer with its digest, or a text as it is; return the path."""
    path = folder / "compare.json"
    path.write_text(answer if isinstance(answer, str) else json.dumps(with_digest(answer)))
    return path


def test_an_answer_of_each_kind_is_read(tmp_path):
    for made in ANSWERS.values():
        assert load_answer(written(tmp_path, made())) == made()


FORGED = [
    ("compare", ("about",), [], "about: [] is not a mapping"),
    ("compare", ("about",), {}, "about.command: it is missing"),
    ("compare", ("about", "page"), "../../EVIL", "about.page: '../../EVIL' is not the name of a p"),
    (
        "compare",
        ("about", "page"),
        "/elsewhere/page",
        "about.page: '/elsewhere/page' is not the name of a p",
    ),
    ("compare", ("about", "page"), r"a}\input{b", "is not the name of a page"),
    ("compare", ("about", "study"), "a}\\input{b", "is not the name of a study"),
    ("compare", ("about", "shell"), None, "about.shell: it is missing"),
    ("compare", ("about", "ablate"), [], "about.ablate: [] is not a mapping"),
    ("compare", ("about", "command"), "zzz", "about.command: 'zzz' is not explain or compare"),
    ("compare", ("about", "within"), "abc", "about.within: 'abc' is not a number"),
    ("compare", ("about", "looks"), {}, "about.looks: {} is no mapping of looks"),
    ("compare", ("about", "seeds"), 5, "about.seeds: 5 is not a list"),
    ("compare", ("validation",), None, "validation: it is missing"),
    ("compare", ("twins",), [], "twins: [] is not a mapping"),
    ("compare", ("contenders",), "abc", "contenders: 'abc' is not a list"),
    ("compare", ("contenders", 1, "gap", "mean"), "abc", "contenders[1].gap.mean: 'abc' is not"),
    ("compare", ("contenders", 1, "gap", "n"), float("nan"), "contenders[1].gap.n: nan is not a n"),
    ("compare", ("contenders", 0, "gap", "low"), 10**400, "number of about 401 digits is not a nu"),
    ("compare", ("contenders", 0, "arm"), "\ud800", "contenders[0].arm: '\\ud800' is not a name"),
    ("compare", ("contenders", 0, "verdict"), "good", "'good' is not within or beyond or cannot t"),
    ("compare", ("contenders", 0, "key"), "two", "learning_rates: 'two' is not there"),
    ("explain", ("shapley",), {}, "shapley: 'U' is not there"),
    ("explain", ("learning_rates", "frozen"), None, "learning_rates: 'frozen' is not there"),
    ("explain", ("causes", 0, "cause"), "above", "causes[0].counterfactuals: 'above' is not there"),
    ("explain", ("recommendation",), "hope", "candidates: 'hope' is not there"),
    ("explain", ("candidates",), None, "candidates: it is missing"),
    ("explain", ("full", "verdict"), 1, "full.verdict: 1 is not within or beyond"),
]


@pytest.mark.parametrize(("kind", "keys", "value", "problem"), FORGED)
def test_what_is_wrong_with_an_answer_is_named(tmp_path, kind, keys, value, problem):
    """The value None removes the key."""
    found = part = ANSWERS[kind]()
    *way, last = keys
    for key in way:
        part = part[key]
    part[last] = value
    if value is None:
        del part[last]
    with pytest.raises(BadInput) as error:
        load_answer(written(tmp_path, found))
    assert "compare.json is not the answer of a study: " in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 99999, "is not JSON"),
        ('{"about": ' * 200 + "1" + "}" * 200, "nested more than 100 levels deep"),
        ('{"about": 1' + "0" * 9999 + "}", "is not JSON"),
        ("[]", "is not a mapping"),
        ("", "is not JSON"),
    ],
)
def test_what_is_no_answer_at_all_is_refused(tmp_path, text, problem):
    with pytest.raises(BadInput, match=rf"compare\.json is not the answer of a study: .*{problem}"):
        load_answer(written(tmp_path, text))


def test_a_changed_answer_is_refused(tmp_path):
    """Any value, also one that the schema allows; and one without a digest."""
    for made in ANSWERS.values():
        path = written(tmp_path, made())
        text = path.read_text()
        for changed in (
            text.replace('"within": 0.05', '"within": 0.06'),
            text.replace('"seeds": [42, 43]', '"seeds": [43, 42]'),
            text.replace('"page"', '"extra": 1, "page"'),
        ):
            assert changed != text
            with pytest.raises(BadInput) as error:
                load_answer(written(tmp_path, changed))
            assert f"{path} is not the answer of a study: it was changed" in str(error.value)
            assert "it does not match its digest" in str(error.value)
            assert error.value.hint == "the study's command writes it again"
        with pytest.raises(BadInput, match=r"compare\.json is not .*: it has no digest"):
            load_answer(written(tmp_path, json.dumps(made())))
        assert load_answer(written(tmp_path, text)) == made()


QUESTION = {"command": "compare", "asked": {}, "arms": {}, "seeds": [1], "within": 0.1, "steps": 5}


def test_an_answer_is_that_of_its_page(tmp_path):
    """A link is not followed, and no answer is rendered over that of another question."""
    questions = {"questions": [{**QUESTION, "page": "compare"}]}
    (tmp_path / "study.json").write_text(json.dumps(questions))
    path = written(tmp_path, compare_answer())
    assert answers_in(tmp_path) == [compare_answer()]
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BadInput, match=r"compare\.json is not the answer of a study: it is no reg"):
        answers_in(tmp_path)
    path.unlink()
    found = compare_answer()
    found["about"]["page"] = "other"
    written(tmp_path, found)
    with pytest.raises(BadInput, match=r"compare\.json is the answer of another page, other"):
        answers_in(tmp_path)


@pytest.mark.parametrize("fails", ["written", "rendered"])
def test_no_rendering_of_an_earlier_answer_stays(tmp_path, monkeypatch, fails):
    """A paper that inputs it would state other numbers than the answer has."""

    def fail(*_):
        raise AltcoreError("planted") if fails == "rendered" else OSError(28, "No space", "x")

    told, ours = [], tmp_path / "compare.notes"
    ours.write_text("mine")
    write(tmp_path, compare_answer(), told.append)
    assert len(list(tmp_path.iterdir())) == 6
    monkeypatch.setattr(answer, "render" if fails == "rendered" else "replace_text", fail)
    with suppress(BadInput):
        write(tmp_path, compare_answer(), told.append)
    assert {path.name for path in tmp_path.iterdir()} == {"compare.json", ours.name}
    assert load_answer(tmp_path / "compare.json") == compare_answer()
    assert len(told) == (fails == "rendered")


def test_an_answer_is_written_into_its_folder_alone(tmp_path):
    """A link in its place is replaced, and what it leads to stays; a folder is named."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "compare.json").symlink_to(victim)
    write(tmp_path, compare_answer(), lambda _: None)
    assert victim.read_text() == "mine"
    assert load_answer(tmp_path / "compare.json") == compare_answer()
    (tmp_path / "compare.md").unlink()
    (tmp_path / "compare.md").mkdir()
    with pytest.raises(BadInput, match=r"compare\.md cannot be written: "):
        write(tmp_path, compare_answer(), lambda _: None)
