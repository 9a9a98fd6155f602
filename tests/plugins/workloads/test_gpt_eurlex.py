"""The workload ``gpt`` on EUR-Lex, through the datasets library, and on a tokenizer's ids."""

import builtins
import json
import socket

import pytest
import torch
from helpers_streams import Broken

from altcore import BadInput
from altcore_workloads import data, eurlex, prepare, tokens
from altcore_workloads.gpt import Gpt

CPU = torch.device("cpu")
LAWS = [f"Article {i}\nThe Member States shall ensure number {i}." for i in range(40)]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """Whoever tries to connect fails, and the library's cache is the test's own."""
    import datasets

    def refuse(*_):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def lines(path, texts=LAWS, field="text"):
    path.write_text("".join(json.dumps({field: t, "labels": [1, 2]}) + "\n" for t in texts))
    return path


def tiny(**settings):
    return Gpt(size="tiny", **settings).build(1, CPU)


def text_of(ids):
    return bytes(ids.tolist()).decode()


@pytest.fixture
def tokenizer(tmp_path):
    """A BPE tokenizer file, trained on the laws."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LAWS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


# -------------------------------------------------------------------------------- EUR-Lex


def test_a_file_of_the_same_shape_is_read_by_the_library(tmp_path):
    """Every document is whole in one split, parted from the next by an empty line."""
    corpus = data.load(f"eurlex:{lines(tmp_path / 'laws.jsonl')}")
    parts = [text_of(corpus.split(s)).split("\n\n") for s in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == sorted(LAWS)
    assert len(parts[0]) > len(parts[1]) >= 1
    assert (
        corpus.description
        == f"EUR-Lex in laws.jsonl, {len(parts[0])} and {len(parts[1])} documents, as bytes"
    )
    assert corpus.is_bytes


def test_documents_do_not_move_when_others_come(tmp_path):
    """The split is by content alone."""
    few = data.load(f"eurlex:{lines(tmp_path / 'few.jsonl', LAWS[:20])}")
    all_ = data.load(f"eurlex:{lines(tmp_path / 'all.jsonl', LAWS[::-1])}")
    held = {s: set(text_of(few.split(s)).split("\n\n")) for s in ("train", "val")}
    for split, documents in held.items():
        assert documents <= set(text_of(all_.split(split)).split("\n\n"))


@pytest.mark.parametrize("count", [2, 3])
def test_few_documents_have_both_splits(tmp_path, count):
    """However the digests fall."""
    corpus = data.load(f"eurlex:{lines(tmp_path / 'x.jsonl', LAWS[:count])}")
    assert corpus.train.numel()
    assert corpus.val.numel()


def test_the_hubs_own_splits_are_used(monkeypatch, tmp_path):
    """Those of LexGLUE: train and validation; its test split is left alone."""
    import datasets

    asked = []

    def load_dataset(*names):
        asked.append(names)
        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_dict({"text": texts, "labels": [[1]] * len(texts)})
                for name, texts in (
                    ("train", LAWS[:30]),
                    ("validation", LAWS[30:35]),
                    ("test", LAWS[35:]),
                )
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = data.load("eurlex")
    assert asked == [("coastalcph/lex_glue", "eurlex")]
    assert text_of(corpus.train).split("\n\n") == LAWS[:30]
    assert text_of(corpus.val).split("\n\n") == LAWS[30:35]
    assert corpus.description.startswith("EUR-Lex of coastalcph/lex_glue, 30 and 5 documents")


def test_it_trains_on_it(tmp_path):
    """A batch is text of the documents, and the record says where from."""
    built = tiny(data=f"eurlex:{lines(tmp_path / 'laws.jsonl')}")
    x, _ = built.batch("train", 1, 0)
    assert text_of(x[0]) in text_of(built.corpus.train)
    assert built.facts["corpus"].startswith("EUR-Lex in laws.jsonl")
    assert torch.isfinite(built.loss(built.model, built.batch("val", 1, 0)))


def test_a_folder_called_eurlex_is_a_path_with_a_dot(tmp_path, monkeypatch):
    """The name alone always means the data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eurlex").mkdir()
    (tmp_path / "eurlex" / "a.txt").write_text("text of mine " * 20)
    assert data.load("./eurlex").description == "1 text file in folder eurlex, as bytes"
    assert not eurlex.is_source("eurlex2")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda p: None, "is not a file"),
        (lambda p: lines(p, field="body"), "no field 'text' in its split train, but body, labels"),
        (lambda p: lines(p, LAWS[:1]), "two documents with text are needed"),
        (lambda p: lines(p, [LAWS[0]] * 3), "two documents with text are needed"),
        (lambda p: p.write_text("{not json"), "cannot be loaded: "),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, write, says):
    """One line, with the key and the file."""
    path = tmp_path / "laws.jsonl"
    write(path)
    with pytest.raises(BadInput, match=f"^gpt.data: eurlex:.*laws.jsonl.*{says}") as caught:
        tiny(data=f"eurlex:{path}")
    assert "\n" not in str(caught.value)


def test_without_the_network_the_message_says_what_else_there_is(monkeypatch):
    """Whatever the library raises on its way."""
    import datasets

    def load_dataset(*_):
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BadInput, match=r"reach the hub; without a network, give eurlex:FILE.jsonl"):
        data.load("eurlex")


@pytest.mark.parametrize("library", ["datasets", "tokenizers"])
def test_a_missing_library_says_what_to_install(library, tmp_path, monkeypatch, tokenizer):
    """Both are extras of the distribution."""
    real = builtins.__import__

    def without(name, *rest):
        if name == library:
            raise ImportError(name)
        return real(name, *rest)

    file = lines(tmp_path / "laws.jsonl")
    monkeypatch.setattr(builtins, "__import__", without)
    extra, settings = {
        "datasets": ("eurlex", {"data": f"eurlex:{file}"}),
        "tokenizers": ("bpe", {"tokenizer": str(tokenizer)}),
    }[library]
    with pytest.raises(BadInput, match=rf"pip install 'altcore-workloads\[{extra}\]'"):
        tiny(**settings)


# ------------------------------------------------------------------------------ tokenizer


def test_ids_are_the_tokenizers(tmp_path, tokenizer):
    """Of the whole text, though it is encoded in pieces, and none is lost."""
    from tokenizers import Tokenizer

    source = f"eurlex:{lines(tmp_path / 'laws.jsonl')}"
    plain = data.load(source)
    made = Tokenizer.from_file(str(tokenizer))
    corpus = tokens.encode(plain, str(tokenizer))
    for split in ("train", "val"):
        expected = made.encode(text_of(plain.split(split))).ids
        assert corpus.split(split).tolist() == expected
    assert corpus.vocab_size == made.get_vocab_size() == 300
    assert corpus.counts.sum() == corpus.train.numel()
    assert corpus.description.endswith("documents, as ids of tokenizer.json (300)")
    assert corpus.sha256 != plain.sha256


def test_pieces_end_at_lines(tmp_path, tokenizer, monkeypatch):
    """Cut into many, the ids are the same."""
    plain = data.load(f"eurlex:{lines(tmp_path / 'laws.jsonl')}")
    whole = tokens.encode(plain, str(tokenizer))
    monkeypatch.setattr(tokens, "PIECE", 10)
    monkeypatch.setattr(tokens, "BATCH", 3)
    assert torch.equal(tokens.encode(plain, str(tokenizer)).train, whole.train)


def test_a_split_within_a_character_is_no_error(tmp_path, tokenizer):
    """A text file is cut at nine tenths of its bytes."""
    path = tmp_path / "a.txt"
    path.write_text("é" * 995)
    built = tiny(data=str(path), tokenizer=str(tokenizer))
    assert built.facts["val_tokens"] > 32


def test_ids_beyond_16_bits_are_kept(tmp_path):
    """Those above 32767 within 16 bits, and those above 65535 in 32."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    for size, dtype in ((60_000, torch.int16), (70_000, torch.int32)):
        words = {f"w{i}": i for i in range(size)}
        made = Tokenizer(models.WordLevel(words, unk_token="w0"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        file = tmp_path / f"{size}.json"
        made.save(str(file))
        text = tmp_path / "a.txt"
        text.write_text(f"w{size - 1} w40000 w7 " * 200)
        built = tiny(data=str(text), tokenizer=str(file))
        assert built.corpus.train.dtype == dtype
        assert built.vocab_size == size
        assert built.corpus.largest_id == size - 1
        x, _ = built.batch("train", 1, 0)
        assert {7, 40000, size - 1} <= {int(i) for i in x.unique()}


def test_a_vocabulary_of_gpt2s_is_used_as_it_is_with_a_tokenizer(tmp_path, tokenizer):
    """And over bytes it is not, which one line says; any other number is."""
    source = f"eurlex:{lines(tmp_path / 'laws.jsonl')}"
    with_ids = tiny(data=source, tokenizer=str(tokenizer), vocab_size=50257)
    assert with_ids.facts["vocab_size"] == with_ids.model.lm_head.out_features == 50257
    assert "notice" not in with_ids.facts
    over_bytes = tiny(data=source, vocab_size=50257)
    assert over_bytes.facts["vocab_size"] == over_bytes.model.lm_head.out_features == 256
    assert over_bytes.facts["notice"].startswith("gpt.vocab_size 50257 is a BPE vocabulary")
    assert tiny(data=source, vocab_size=300).facts["vocab_size"] == 300
    with pytest.raises(BadInput, match=r"gpt.vocab_size: 280 is too small"):
        tiny(data=source, tokenizer=str(tokenizer), vocab_size=280)


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "cannot be read: No such file"), ("{}", "is not a tokenizer.json: ")],
)
def test_a_tokenizer_that_is_none_is_named(tmp_path, text, says):
    """With the key and the file."""
    path = tmp_path / "t.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=f"^gpt.tokenizer: .*t.json {says}"):
        tiny(tokenizer=str(path))


# -------------------------------------------------------------------------------- prepare


def test_prepared_data_are_the_same_ids(tmp_path, tokenizer, capsys):
    """As train.bin and val.bin, which need neither library any more."""
    source = f"eurlex:{lines(tmp_path / 'laws.jsonl')}"
    out = tmp_path / "bins"
    code = prepare.main(["--data", source, "--tokenizer", str(tokenizer), "--out", str(out)])
    assert code == 0
    corpus = tokens.encode(data.load(source), str(tokenizer))
    found = data.load(str(out))
    assert torch.equal(found.train[:], corpus.train)
    assert torch.equal(found.val[:], corpus.val)
    assert f"{corpus.train.numel()} of train" in capsys.readouterr().out
    built = tiny(data=str(out), vocab_size=50257)
    assert built.facts["vocab_size"] == 50257
    with pytest.raises(BadInput, match="holds token ids already: leave the tokenizer out"):
        tiny(data=str(out), tokenizer=str(tokenizer))


def test_preparing_says_how_long_is_left(monkeypatch, capsys):
    """Every ten seconds, and nothing before."""
    now = [0.0]
    monkeypatch.setattr(prepare.time, "monotonic", lambda: now[0])
    tell = prepare.heartbeat()
    for share in (0.1, 0.25, 0.5):
        now[0] += 6
        tell(share)
    assert capsys.readouterr().err == "encoding: 25% done, about 36 s left\n"
    monkeypatch.setattr("sys.stderr", Broken("its reader has gone"))
    now[0] += 60
    tell(0.75)


def test_encoding_tells_how_much_is_done(tmp_path, tokenizer):
    """From nothing to all of it, never less than before."""
    shares = []
    tokens.encode(
        data.load(f"eurlex:{lines(tmp_path / 'laws.jsonl')}"), str(tokenizer), shares.append
    )
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1


def test_prepare_says_what_is_wrong(tmp_path, capsys):
    """In one line, with exit code 2."""
    assert prepare.main(["--tokenizer", str(tmp_path / "t"), "--out", str(tmp_path / "o")]) == 2
    assert "gpt.tokenizer: " in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_ids_with_gaps_keep_their_values(tmp_path):
    """A tokenizer of three words whose ids reach beyond 16 bits."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0, "b": 70_000, "?": 1}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "t.json"))
    (tmp_path / "text.txt").write_text("a b " * 200)
    built = tiny(data=str(tmp_path / "text.txt"), tokenizer=str(tmp_path / "t.json"))
    assert built.corpus.train.tolist()[:2] == [0, 70_000]
    assert built.vocab_size == 70_001


def test_ids_that_no_tokenizer_has_are_refused(tmp_path):
    """The model would have a row for each id up to the largest."""
    model = {"type": "WordLevel", "vocab": {"a": 2**30}, "unk_token": "a"}
    (tmp_path / "t.json").write_text(json.dumps({"version": "1.0", "model": model}))
    (tmp_path / "text.txt").write_text("a b " * 200)
    with pytest.raises(BadInput, match=r"^gpt.tokenizer: .*t.json has the id 1073741824"):
        tiny(data=str(tmp_path / "text.txt"), tokenizer=str(tmp_path / "t.json"))


def test_a_tokenizer_of_any_size_is_not_read_whole(tmp_path, monkeypatch):
    """It is refused by its size."""
    monkeypatch.setattr(tokens, "LARGEST_FILE", 100)
    (tmp_path / "t.json").write_text("{" + " " * 200)
    with pytest.raises(BadInput, match=r"^gpt.tokenizer: .*t.json has more than"):
        tiny(tokenizer=str(tmp_path / "t.json"))


def test_padding_and_truncation_of_a_tokenizer_are_left_out(tmp_path, tokenizer):
    """They are for batches of sentences: a text has the same ids without."""
    plain = json.loads(tokenizer.read_text())
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 70_000, "pad_type_id": 0, "pad_token": "?"}
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**plain, "padding": padding, "truncation": cut}))
    (tmp_path / "text.txt").write_text("the laws of the union " * 100)
    one, two = (tiny(data=str(tmp_path / "text.txt"), tokenizer=str(t)) for t in (tokenizer, other))
    assert torch.equal(one.corpus.train, two.corpus.train)
