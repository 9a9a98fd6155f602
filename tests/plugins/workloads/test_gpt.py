"""The workload plugin ``gpt``: data, batches, model and loss."""

import array
import hashlib
import math
import os
import textwrap
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

from altcore import BadInput
from altcore_workloads import data, token_files
from altcore_workloads.gpt import SIZES, Gpt

CPU = torch.device("cpu")
PROSE = "The quick brown fox jumps over the lazy dog, again and again.\n" * 40


def tiny(seed=1, **settings):
    return Gpt(size="tiny", **settings).build(seed, CPU)


def write_bin(path, ids):
    path.write_bytes(array.array("H", ids).tobytes())
    return path


def bins(folder, train=range(1000), val=range(500)):
    folder.mkdir(exist_ok=True)
    write_bin(folder / "train.bin", train)
    write_bin(folder / "val.bin", val)
    return folder


def text_of(tokens):
    return tokens.to(torch.uint8).numpy().tobytes()


# ------------------------------------------------------------------------ batches


def test_a_batch_is_a_pure_function_of_seed_split_step_and_micro():
    """Order of calls, other settings of the run and the global random state change no batch."""
    one, two = tiny(), tiny(dropout=0.5, n_layer=1)
    wanted = one.batch("train", 7, 3)
    torch.manual_seed(99)
    for step in range(3):
        two.batch("train", step, 0)
        two.batch("val", step, 0)
    assert all(torch.equal(a, b) for a, b in zip(wanted, two.batch("train", 7, 3), strict=True))


def test_every_part_of_the_key_changes_the_batch():
    """Another seed, split, step or micro-batch gives other tokens."""
    built = tiny()
    batches = [
        built.batch("train", 7, 3),
        built.batch("train", 8, 3),
        built.batch("train", 7, 4),
        built.batch("train", 3, 7),
        built.batch("val", 7, 3),
        tiny(seed=2).batch("train", 7, 3),
    ]
    assert len({x.numpy().tobytes() for x, _ in batches}) == len(batches)


def test_batches_do_not_touch_the_global_random_state():
    """Drawing a batch leaves PyTorch's generator where it was."""
    built = tiny()
    before = torch.get_rng_state()
    built.batch("train", 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_are_the_inputs_shifted_by_one(tmp_path):
    """y[t] is the token after x[t], and both are consecutive bytes of the split."""
    path = tmp_path / "a.txt"
    path.write_text(PROSE)
    x, y = tiny(data=str(path)).batch("train", 0, 0)
    assert x.shape == y.shape == (8, 32)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    for row, last in zip(x, y[:, -1:], strict=True):
        assert text_of(torch.cat([row, last])) in PROSE.encode()


def test_every_sequence_of_a_split_can_be_drawn(tmp_path):
    """First and last position are reached, and each about equally often."""
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(32, 72)))  # 36 train, 4 val
    built = tiny(data=str(path), block_size=3, batch_size=64)
    starts = torch.cat([built.batch("train", step, 0)[0][:, 0] for step in range(50)])
    counts = torch.bincount(starts - 32)
    assert len(counts) == 36 - 3
    assert counts.min() > 0.5 * counts.double().mean()
    assert {int(s) for s in built.batch("val", 0, 0)[0][:, 0]} == {32 + 36}


def test_an_unknown_split_is_refused():
    """Only train and val exist."""
    with pytest.raises(ValueError, match="'train' or 'val'"):
        tiny().batch("test", 0, 0)


# --------------------------------------------------------------------------- data


def test_without_a_path_the_standard_library_is_read_and_split_by_file():
    """Splits are disjoint, about 90 to 10, and free of tests and installed packages."""
    built = tiny()
    facts = built.facts
    assert facts["train_bytes"] > 1_000_000
    assert 0.03 < facts["val_bytes"] / (facts["train_bytes"] + facts["val_bytes"]) < 0.3
    train, val = (text_of(built.corpus.split(split)) for split in ("train", "val"))
    for module in (attrs, pytest, torch):  # installed packages
        assert Path(module.__file__).read_bytes() not in train + val
    for module in (hashlib, os, textwrap):
        source = Path(module.__file__).read_bytes()
        assert (source in train) != (source in val)
    assert facts["train_files"] > 100
    assert facts["val_files"] > 10


def test_the_digest_names_the_tokens(tmp_path):
    """Equal texts have equal digests wherever they lie; one changed byte makes another."""
    for name, text in (("a", PROSE), ("b", PROSE), ("c", PROSE.replace("lazy", "hazy", 1))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.txt").write_text(text)
    a, b, c = (tiny(data=str(tmp_path / n / "same.txt")).facts["sha256"] for n in "abc")
    assert a == b != c
    assert tiny().facts["sha256"] == tiny(seed=2).facts["sha256"]


def test_a_text_file_is_split_at_nine_tenths(tmp_path):
    """The first 90 % of the bytes train, the last 10 % validate, none is lost."""
    path = tmp_path / "a.txt"
    path.write_bytes(PROSE.encode()[:1000])
    corpus = data.load(path)
    assert text_of(corpus.train) == PROSE.encode()[:900]
    assert text_of(corpus.val) == PROSE.encode()[900:1000]


def test_a_folder_is_split_by_file_and_files_do_not_move(tmp_path):
    """Each file is whole in one split, and stays in it when others are added.

    Hidden, empty and binary files, and links to folders or to nothing, are left out.
    """
    for i in range(40):
        name = tmp_path / f"sub{i % 3}" / f"{i}.md"
        name.parent.mkdir(exist_ok=True)
        name.write_text(f"<file {i}>")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("secret")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "zeros").write_bytes(bytes(10))
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")

    def files_of(corpus):
        return [set(text_of(corpus.split(s)).decode().split("\n")) for s in ("train", "val")]

    train, val = files_of(corpus := data.load(tmp_path))
    assert train | val == {f"<file {i}>" for i in range(40)}
    assert not train & val
    assert val
    assert corpus.files == {"train": len(train), "val": len(val)}
    for i in range(40, 80):
        (tmp_path / f"{i}.md").write_text(f"<file {i}>")
    more_train, more_val = files_of(data.load(tmp_path))
    assert train <= more_train
    assert val <= more_val


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_folder_of_few_files_has_both_splits(tmp_path, count):
    """However the hashes fall, neither split is empty."""
    for i in range(count):
        (tmp_path / f"{i}.txt").write_text(PROSE)
    files = data.load(tmp_path).files
    assert min(files.values()) >= 1
    assert sum(files.values()) == count


def test_a_folder_of_one_file_is_split_within_it(tmp_path):
    """One text in a folder is read as if it were named itself."""
    (tmp_path / "only.txt").write_text(PROSE)
    assert data.load(tmp_path).sha256 == data.load(tmp_path / "only.txt").sha256


def test_a_character_across_a_read_boundary_is_still_text(tmp_path, monkeypatch):
    """Files are decoded in blocks; a character that straddles two is no error."""
    monkeypatch.setattr(data, "BLOCK", 16)
    path = tmp_path / "a.txt"
    path.write_text("é" * 7 + "a" + "é" * 500)
    assert data.load(path).train.numel() > 0
    path.write_bytes("é".encode() * 100 + b"\xc3")
    with pytest.raises(BadInput, match="not UTF-8"):
        data.load(path)


def test_a_nanogpt_folder_brings_its_ids(tmp_path):
    """uint16 ids pass unchanged, those above 32767 too; the vocabulary is GPT-2's."""
    ids = [50256, 40000, 0, 7] * 100
    built = tiny(data=str(bins(tmp_path / "d", ids, ids)))
    assert built.facts["vocab_size"] == 50257
    assert built.facts["train_tokens"] == 400
    assert built.facts["train_bytes"] == 800
    x, y = built.batch("val", 0, 0)
    assert torch.equal(x[:, 1:], y[:, :-1])
    start = ids.index(int(x[0, 0]))
    assert x[0].tolist() == (ids * 2)[start : start + 32]


def test_validating_what_was_trained_is_told(tmp_path):
    """Of ids and of text, once at the start and in the summary."""
    same, most = range(2000), [*range(1999), 7]
    told = "the data that validate are those that train"
    assert told in tiny(data=str(bins(tmp_path / "same", same, same))).facts["notice"]
    assert told not in tiny(data=str(bins(tmp_path / "most", same, most))).facts["notice"]
    (tmp_path / "texts").mkdir()
    for name in ("train.txt", "val.txt"):
        (tmp_path / "texts" / name).write_text(PROSE)
    assert tiny(data=str(tmp_path / "texts")).facts["notice"].startswith(told)


@pytest.mark.parametrize(
    ("largest", "size"), [(64, 128), (127, 128), (50191, 50240), (50250, 50257), (50257, 50304)]
)
def test_a_vocabulary_is_what_the_ids_need_and_that_is_said(tmp_path, largest, size):
    """Rounded up to a multiple of 64, and to GPT-2's where its next one is beyond that."""
    built = tiny(data=str(bins(tmp_path / "d", [largest, 20, 3] * 100, [1, 2] * 50)))
    assert built.facts["vocab_size"] == built.model.lm_head.out_features == size
    assert built.facts["notice"].startswith(f"gpt.vocab_size is {size}: the ids of ")
    assert f" reach {largest}, " in built.facts["notice"]
    given = tiny(data=str(tmp_path / "d"), vocab_size=60000)
    assert (given.facts["vocab_size"], given.facts.get("notice")) == (60000, None)


@pytest.mark.parametrize("ids", [[100300, 70000, 5, 0], [64, 3, 20, 1], [1, 0, 2, 1]])
def test_uint32_ids_are_told_from_uint16(tmp_path, ids):
    """The same ids in either width are the same batches."""
    wide = tmp_path / "wide"
    wide.mkdir()
    for name, count in (("train", 100), ("val", 20)):
        (wide / f"{name}.bin").write_bytes(array.array("I", ids * count).tobytes())
    built = tiny(data=str(wide))
    assert built.facts["train_tokens"] == 400
    assert built.corpus.largest_id == max(ids)
    assert built.facts["corpus"].startswith("uint32 token ids in folder wide")
    x, _ = built.batch("train", 1, 0)
    assert set(x.flatten().tolist()) == set(ids)
    if max(ids) < 1 << 16:
        narrow = tiny(data=str(bins(tmp_path / "narrow", ids * 100, ids * 20)))
        assert torch.equal(narrow.batch("train", 1, 0)[0], x)
        assert narrow.corpus.train.dtype == torch.int16
        assert narrow.corpus.unigram_entropy() == built.corpus.unigram_entropy()


def test_a_token_file_that_is_shortened_in_use_is_named(tmp_path):
    """Up to then its slices are those of the whole file."""
    built = tiny(data=str(bins(tmp_path / "d", range(60_000))))
    file = str(tmp_path / "d" / "train.bin")
    whole = torch.from_file(file, size=60_000, dtype=torch.int16)
    assert torch.equal(built.corpus.train[40_000:60_000], whole[40_000:])
    x, y = built.batch("train", 1, 0)
    assert torch.equal(x - x[:, :1], torch.arange(32).expand(8, 32))
    assert torch.equal(y, x + 1)
    os.truncate(file, 10)
    says = "gpt.data: .*train.bin was shortened while it was in use: it had 60000 token ids"
    with pytest.raises(BadInput, match=says):
        built.batch("train", 2, 0)


def ids_of(folder, **files):
    """Write files of ids, each of the array type that comes first."""
    folder.mkdir()
    for name, (kind, ids) in files.items():
        (folder / f"{name}.bin").write_bytes(array.array(kind, ids).tobytes())
    return str(folder)


def test_uint32_ids_may_be_mostly_beyond_16_bits(tmp_path):
    """As those of a text are whose letters came last into a vocabulary."""
    ids = [70000 + i % 1000 if i % 5 else i % 3000 for i in range(20000)]
    built = tiny(data=ids_of(tmp_path / "d", train=("I", ids), val=("I", ids[:4000])))
    assert built.facts["train_tokens"] == 20000
    assert built.corpus.largest_id == 70999


def test_uint16_ids_in_pairs_are_not_read_as_uint32(tmp_path):
    """Where the files could be either, the setting says what they are."""
    pairs = [x for i in range(2000) for x in (16 + i % 700, i % 3)]
    folder = ids_of(tmp_path / "d", train=("H", pairs), val=("H", pairs))
    says = r"train.bin holds uint32 ids, or pairs of uint16 ones: say which by gpt.token_type"
    with pytest.raises(BadInput, match=says):
        tiny(data=folder)
    assert tiny(data=folder, token_type="uint16").corpus.largest_id == 715
    wide = tiny(data=folder, token_type="uint32")
    assert wide.corpus.largest_id >= 2 << 16
    assert wide.facts["corpus"].startswith("uint32 token ids")


@pytest.mark.parametrize(("train", "val"), ["HI", "IH"])
def test_both_files_hold_ids_of_one_type(tmp_path, train, val):
    """Neither is read as if it were of the other's."""
    ids = list(range(3000))
    folder = ids_of(tmp_path / "d", train=(train, ids), val=(val, [*ids, 5]))
    names = {"H": "uint16", "I": "uint32"}
    says = f"train.bin holds {names[train]} and val.bin holds {names[val]} ids"
    with pytest.raises(BadInput, match=says):
        tiny(data=folder)


def test_ids_of_8_bytes_are_refused(tmp_path):
    """They would be uint32 ids of which every second one is 0."""
    ids = list(range(3000))
    folder = ids_of(tmp_path / "d", train=("q", ids), val=("q", ids))
    with pytest.raises(BadInput, match=r"train.bin holds neither uint16 nor uint32"):
        tiny(data=folder)


def test_all_of_a_file_says_of_which_type_it_is(tmp_path, monkeypatch):
    """A beginning that looks like uint32 does not make the rest so."""
    monkeypatch.setattr(token_files, "BLOCK", 400)
    mixed = [300, 0] * 400 + list(range(1000))
    folder = ids_of(tmp_path / "d", train=("H", mixed), val=("H", mixed))
    with pytest.raises(BadInput, match=r"train.bin holds neither uint16 nor uint32"):
        tiny(data=folder)
    assert tiny(data=folder, token_type="uint16").facts["train_tokens"] == 1800


def test_a_token_type_is_one_of_files_of_ids(tmp_path):
    """Text has none."""
    (tmp_path / "a.txt").write_text("letters " * 100)
    with pytest.raises(BadInput, match=r"gpt.token_type: .*a.txt is text"):
        tiny(data=str(tmp_path / "a.txt"), token_type="uint16")
    with pytest.raises(BadInput, match=r"gpt.token_type: 'int8' is none of uint16, uint32"):
        tiny(token_type="int8")


def test_what_is_neither_is_refused(tmp_path):
    """An upper half that is large later on; a size that uint32 does not divide."""
    good = array.array("I", [300, 5] * 100).tobytes()
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "train.bin").write_bytes(good)
    for val, says in (
        (good + b"ab", "val.bin has 802 bytes, which 4 does not divide; uint32 ids"),
        (array.array("I", [1 << 24]).tobytes(), "val.bin holds neither uint16 nor uint32"),
    ):
        (folder / "val.bin").write_bytes(val)
        with pytest.raises(BadInput, match=says):
            data.load(folder)


def test_a_large_bin_file_is_surveyed_not_read(tmp_path, monkeypatch):
    """Of a file beyond the survey some blocks are read, with the first and the last among them.

    An id too large for the vocabulary elsewhere is found when a batch meets it.
    """
    monkeypatch.setattr(token_files, "BLOCK", 200)
    monkeypatch.setattr(token_files, "SURVEY_BLOCKS", 3)
    ids = [1] * 100 + [9] * 100 + [1] * 700 + [2] * 50
    folder = str(bins(tmp_path / "d", ids, [1] * 100))
    built = tiny(data=folder, vocab_size=10)
    assert not built.corpus.complete
    assert built.corpus.counts.sum() == 250
    assert built.corpus.counts[2] == 50
    assert built.corpus.counts[9] == 0
    unlucky = tiny(data=folder, vocab_size=9)

    def train():
        for step in range(100):
            unlucky.batch("train", step, 0)

    with pytest.raises(BadInput, match=r"gpt.vocab_size: 9 .* token id 9: at least 10"):
        train()


def test_unigram_entropy_is_that_of_the_training_frequencies(tmp_path):
    """Of ``aaaaaabbc`` it is 6/9 ln(9/6) + 2/9 ln(9/2) + 1/9 ln 9 nats, whatever validates."""
    path = tmp_path / "a.txt"
    path.write_text("aaaaaabbcz")
    expected = 6 / 9 * math.log(9 / 6) + 2 / 9 * math.log(9 / 2) + math.log(9) / 9
    assert data.load(path).unigram_entropy() == pytest.approx(expected, rel=1e-12)
    folder = bins(tmp_path / "d", [40000] * 6 + [5] * 2 + [0], [1, 2, 3])
    assert data.load(folder).unigram_entropy() == pytest.approx(expected, rel=1e-12)


def test_the_entropy_of_one_letter_is_zero(tmp_path):
    """And not -0.0."""
    path = tmp_path / "a.txt"
    path.write_text("a" * 5000)
    assert repr(data.load(path).unigram_entropy()) == "0.0"


def _missing(path):
    return path / "gone.txt"


def _below_a_file(path):
    (path / "a.txt").write_text("a")
    return path / "a.txt" / "b.txt"


def _empty_file(path):
    (path / "a.txt").touch()
    return path / "a.txt"


def _binary_file(path):
    return write_bin(path / "train.bin", [50256, 50000])


def _empty_folder(path):
    (path / "picture.png").write_bytes(b"\x89PNG")
    return path


def _pipe(path):
    os.mkfifo(path / "pipe")
    return path / "pipe"


def _only_train(path):
    write_bin(path / "train.bin", range(100))
    return path


def _only_val(path):
    write_bin(path / "val.bin", range(100))
    return path


def _odd(path):
    bins(path)
    (path / "val.bin").write_bytes(b"abc")
    return path


def _empty_bin(path):
    bins(path)
    (path / "val.bin").write_bytes(b"")
    return path


def _bin_is_a_folder(path):
    write_bin(path / "train.bin", range(100))
    (path / "val.bin").mkdir()
    return path


def _link_to_itself(path):
    (path / "loop").symlink_to(path / "loop")
    return path / "loop"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_missing, "gone.txt does not exist"),
        (_below_a_file, "b.txt does not exist"),
        (_empty_file, "a.txt is empty"),
        (_binary_file, "train.bin is not UTF-8 text: .* give the folder"),
        (_empty_folder, "holds no text"),
        (_pipe, "pipe is neither a regular file nor a folder"),
        (_only_train, "has train.bin but no val.bin"),
        (_only_val, "has val.bin but no train.bin"),
        (_odd, "val.bin has 3 bytes, an odd number"),
        (_empty_bin, "val.bin is empty"),
        (_bin_is_a_folder, "val.bin is not a regular file"),
        (_link_to_itself, "cannot read .*loop"),
    ],
)
def test_unusable_data_is_one_line_that_names_the_path(tmp_path, make, says):
    """Whatever is wrong with the path, the message has the key, the path and the reason."""
    path = make(tmp_path)
    with pytest.raises(BadInput, match=says) as caught:
        tiny(data=str(path))
    message = str(caught.value)
    assert message.startswith("gpt.data: ")
    assert str(tmp_path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "says"),
    [("", "empty; give a path"), ("a\0b", "null byte"), ("~no-such-user/a", "home directory")],
)
def test_what_cannot_be_a_path_is_refused(path, says):
    """An empty path is not the current folder; a null byte and an unknown home do not crash."""
    with pytest.raises(BadInput, match=f"gpt.data: .*{says}"):
        tiny(data=path)


@pytest.mark.parametrize("kind", ["file", "in a folder", "folder"])
def test_data_without_permission_are_refused_not_left_out(tmp_path, kind, monkeypatch):
    """A file that is there and cannot be read would silently change the data: it is an error."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(PROSE)
    barred = folder if kind == "folder" else folder / "b"

    # Permission bits do not bind root, as which tests often run.
    def denied(real):
        def call(path, *args, **kwargs):
            if os.fspath(path) == str(barred):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        return call

    monkeypatch.setattr(os, "scandir", denied(os.scandir))
    monkeypatch.setattr(type(folder), "open", denied(type(folder).open))
    given = folder / "b" if kind == "file" else folder
    with pytest.raises(BadInput) as caught:
        tiny(data=str(given))
    assert str(caught.value) == f"gpt.data: cannot read {barred}: Permission denied"


@pytest.mark.parametrize("split", ["train", "val"])
def test_too_little_data_says_how_much_is_there_and_how_much_is_needed(tmp_path, split):
    """A split needs a sequence and its targets: block_size + 1 tokens, and that many suffice."""
    sizes = {"train": 50, "val": 50, split: 32}
    folder = str(bins(tmp_path / "d", range(sizes["train"]), range(sizes["val"])))
    with pytest.raises(BadInput, match=f"the {split} split of .*d has 32 tokens, .* at least 33"):
        tiny(data=folder)
    x, _ = tiny(data=folder, block_size=31).batch(split, 0, 0)
    assert x[:, 0].tolist() == [0] * 8


def test_ids_beyond_the_vocabulary_are_refused(tmp_path):
    """The message says which id, and how large a vocabulary would do."""
    folder = str(bins(tmp_path / "d", [1] * 99 + [700], [1] * 99))
    with pytest.raises(BadInput, match=r"gpt.vocab_size: 700 .*d, .* id 700: at least 701"):
        tiny(data=folder, vocab_size=700)
    assert tiny(data=folder, vocab_size=701).facts["vocab_size"] == 701


# ----------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_head": 5}, "gpt.n_head: 5 does not divide n_embd 128"),
        ({"n_embd": 30}, "gpt.n_head: 4 does not divide n_embd 30"),
        ({"size": "huge"}, "gpt.size: 'huge' is none of tiny, small, seed"),
        ({"n_layer": 0}, "gpt.n_layer: 0 is not a positive whole number"),
        ({"batch_size": -1}, "gpt.batch_size: -1 is not a positive whole number"),
        ({"block_size": 1.5}, "gpt.block_size: 1.5 is not a positive whole number"),
        ({"vocab_size": True}, "gpt.vocab_size: True is not a positive whole number"),
        ({"dropout": 1.0}, r"gpt.dropout: 1.0 is not in \[0, 1\)"),
        ({"dropout": math.nan}, r"gpt.dropout: nan is not in \[0, 1\)"),
    ],
)
def test_impossible_settings_name_the_key(settings, says):
    """What cannot be is refused when it is given, before any data are read."""
    with pytest.raises(BadInput, match=f"^{says}$"):
        Gpt(**settings)


def test_a_setting_that_is_given_wins_over_the_size():
    """The size fills in only what is left open."""
    assert Gpt().shape() == SIZES["small"]
    assert Gpt(size="tiny", n_embd=64).shape() == attrs.evolve(SIZES["tiny"], n_embd=64)


# -------------------------------------------------------------------------- model


def test_the_model_depends_on_the_seed_alone_and_leaves_the_random_state():
    """Equal seeds give equal weights, others other ones; the global generator stays as it was."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = tiny(seed=1).model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = tiny(seed=1).model.state_dict(), tiny(seed=2).model.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    key = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(first[key], other[key])


def test_weights_start_as_in_nanogpt():
    """Normal of 0.02, the residual projections smaller by sqrt(2 layers), biases 0, norms 1."""
    model = Gpt().build(0, CPU).model
    for name, p in model.named_parameters():
        if p.ndim == 1:
            one = ".ln_" in name and name.endswith("weight")
            assert torch.equal(p, torch.full_like(p, float(one))), name
        else:
            std = 0.02 / math.sqrt(8) if "c_proj" in name else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name


def test_the_head_is_tied_to_the_embedding_and_can_be_found():
    """One tensor serves both, also after a copy to a type, and get_output_embeddings names it."""
    model = tiny().model
    assert model.get_output_embeddings() is model.lm_head
    assert model.to(torch.float64).lm_head.weight is model.transformer.wte.weight
    linears = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert linears == [
        *(
            f"transformer.h.{i}.{part}"
            for i in range(2)
            for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ),
        "lm_head",
    ]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_the_number_of_parameters_is_the_closed_formula(size, bias):
    """12 L d² for the matrices, 13 L d + 2 d for biases and norms, and the embeddings."""
    built = Gpt(size=size, bias=bias).build(0, CPU)
    shape = built.shape
    d, layers = shape.n_embd, shape.n_layer
    vectors = 13 * layers * d + 2 * d if bias else 2 * layers * d + d
    expected = 12 * layers * d * d + vectors + (256 + shape.block_size) * d
    assert built.facts["parameters"] == expected


def test_a_later_token_never_changes_an_earlier_logit():
    """Attention is causal: position t sees tokens 0 to t, and it does see all of them."""
    model = tiny().model.eval()
    idx = torch.randint(256, (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(idx)
        for t in (0, 13, 31):
            changed = idx.clone()
            changed[0, t] = (changed[0, t] + 1) % 256
            difference = (model(changed) - before).abs().amax(-1)[0]
            assert difference[:t].max().item() == 0 if t else True
            assert difference[t:].min().item() > 0


def test_a_sequence_longer_than_the_context_is_refused():
    """There is no position embedding for it."""
    with pytest.raises(ValueError, match="33 tokens in a sequence, but block_size is 32"):
        tiny().model(torch.zeros(1, 33, dtype=torch.int64))


def test_dropout_acts_in_training_only():
    """In evaluation the model is a function of its input."""
    built = tiny(dropout=0.5)
    x, _ = built.batch("val", 0, 0)
    assert not torch.equal(built.model(x), built.model(x))
    built.model.eval()
    assert torch.equal(built.model(x), built.model(x))


# --------------------------------------------------------------------------- loss


def test_the_loss_at_the_start_is_that_of_guessing():
    """Before training every byte is about as likely: ln 256 nats a token."""
    built = tiny()
    assert built.loss(built.model, built.batch("val", 0, 0)).item() == pytest.approx(
        math.log(256), abs=0.1
    )


def test_the_loss_is_computed_in_float32():
    """bfloat16 logits are widened before the softmax, so that the loss is not rounded to 8 bits."""
    built = tiny()
    logits = torch.randn(8, 32, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    _, y = batch = built.batch("val", 0, 0)
    loss = built.loss(lambda x: logits, batch)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    picked = logits.double().log_softmax(-1).gather(-1, y[..., None])
    assert loss.item() == pytest.approx(-picked.mean().item(), rel=1e-5)


def test_facts_are_what_the_record_can_hold():
    """Plain strings and numbers; an item is a token, and a batch has batch x context of them."""
    built = tiny()
    assert (built.item, built.items_per_batch) == ("tokens", 8 * 32)
    assert {type(value) for value in built.facts.values()} <= {str, int, float}
    assert 0 < built.facts["unigram_entropy"] < math.log(256)


def test_it_learns():
    """Twenty steps of a tiny model take the loss well below guessing."""
    built = tiny()
    optimizer = torch.optim.AdamW(built.model.parameters(), lr=1e-2)
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        loss = built.loss(built.model, built.batch("train", step, 0))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(256), abs=0.1)
    assert sum(losses[-3:]) / 3 < losses[0] - 1.5


@pytest.mark.cuda
def test_a_gpu_sees_the_same_model_and_the_same_batches():
    """Weights and tokens do not depend on the device."""
    here, there = tiny(), Gpt(size="tiny").build(1, torch.device("cuda"))
    for a, b in zip(here.batch("val", 3, 1), there.batch("val", 3, 1), strict=True):
        assert b.is_cuda
        assert torch.equal(a, b.cpu())
    for a, b in zip(here.model.parameters(), there.model.parameters(), strict=True):
        assert torch.equal(a, b.cpu())
