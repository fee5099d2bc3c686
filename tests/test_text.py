"""The text task: which characters are read, in which order, what is held out, and what the numbers of the report mean."""

import codecs
import itertools
import json
import lzma
import math
import os
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bptt.errors import InputError
from bptt.network import Network, Softmax
from bptt.options import PredictOptions, TextOptions
from bptt.tasks.base import Batch, Shard
from bptt.tasks.reading import characters, corpus
from bptt.tasks.reading.characters import Characters
from bptt.tasks.reading.corpus import Document, find_documents, split
from bptt.tasks.reading.vocabulary import START, UNKNOWN, Vocabulary
from bptt.tasks.scoring.compression import unigram_entropy, xz_bits
from bptt.tasks.streams import text as lanes
from bptt.tasks.streams.text import TextStream, held_out_batches
from bptt.tasks.text import Text
from tests.runs import bptt

# One to four bytes each in UTF-8, and what is awkward in JSON or at the end of a line.
CHARACTERS = st.sampled_from("ab \n\r\x01\x7fé߿ࠀ中￿𐀀🙂\u2028\ufeff")
DOCUMENTS = st.lists(st.text(CHARACTERS, min_size=1, max_size=40), min_size=1, max_size=6)


MORE = settings(max_examples=4 * settings().max_examples)  # they are cheap


pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def written(texts):
    """Documents with these texts, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        documents = []
        for i, text in enumerate(texts):
            path = Path(folder, f"{i:02}.txt")
            path.write_bytes(text.encode())
            documents.append(Document(path, path.name, 0, path.stat().st_size))
        yield documents


def read(documents):
    return [d.path.read_bytes()[d.begin : d.end].decode() for d in documents]


def blocks_of(size):
    return mock.patch.object(characters, "BLOCK", size)


def lane_oracle(texts, vocabulary, lane, count, n):
    """The first n (input, target) pairs of a lane, from its definition."""
    pairs = []
    for text in texts:
        symbols = vocabulary.encode(text).tolist()
        pairs += list(zip([START, *symbols], symbols, strict=False))
    mine = pairs[lane * len(pairs) // count : (lane + 1) * len(pairs) // count]
    mine[0] = (START, mine[0][1])
    return [mine[i % len(mine)] for i in range(n)]


@MORE
@given(DOCUMENTS, st.integers(1, 4), st.integers(1, 9), st.integers(4, 12))
def test_lanes_hold_every_character_with_its_predecessor(texts, count, chunk, block):
    total = sum(map(len, texts))
    count = min(count, total)
    with written(texts) as documents, blocks_of(block):
        text = Characters(documents)
        vocabulary = Vocabulary(text.known)
        stream = TextStream(text, vocabulary, count, chunk, Shard())
        batches = [next(stream) for _ in range(-(-2 * total // chunk))]  # past the end of each lane, at least twice
    assert stream.epoch == len(batches) * chunk * count / total
    x, y = (torch.cat([getattr(b, a) for b in batches]) for a in "xy")
    for lane in range(count):
        oracle = lane_oracle(texts, vocabulary, lane, count, len(x))
        assert list(zip(x[:, lane].tolist(), y[:, lane].tolist(), strict=True)) == oracle
    for b in batches:
        assert (b.x.shape, b.x.dtype, b.y.dtype) == ((chunk, count), torch.int64, torch.int64)
        assert b.mask.all()
        assert b.count == chunk * count
        assert torch.equal(b.reset, b.x == START) if b.reset is not None else not (b.x == START).any()


@MORE
@given(DOCUMENTS, st.integers(1, 9), st.integers(4, 12))
def test_one_lane_reads_each_document_once_per_epoch_and_starts_it_fresh(texts, chunk, block):
    total = sum(map(len, texts))
    with written(texts) as documents, blocks_of(block):
        text = Characters(documents)
        vocabulary = Vocabulary(text.known)
        stream = TextStream(text, vocabulary, 1, chunk, Shard())
        batches = [next(stream) for _ in range(-(-total // chunk))]
    x, y = (torch.cat([getattr(b, a) for b in batches])[:total, 0].tolist() for a in "xy")
    assert "".join(map(vocabulary.character, y)) == "".join(texts)
    starts = [i for i, symbol in enumerate(x) if symbol == START]
    assert starts == [0, *np.cumsum([len(t) for t in texts])[:-1]]


@MORE
@given(DOCUMENTS, st.integers(4, 9))
def test_counts_and_vocabulary_are_those_of_the_text_whatever_the_blocks(texts, block):
    with written(texts) as documents, blocks_of(block):
        text = Characters(documents)
        assert b"".join(text.read()).decode() == "".join(texts)
    counter = Counter("".join(texts))
    assert text.total == sum(counter.values())
    assert text.known == "".join(sorted(counter))
    assert all(text.counts[ord(c)] == n for c, n in counter.items())
    vocabulary = Vocabulary(json.loads(json.dumps(text.known)))
    assert vocabulary.encode("".join(sorted(counter))).tolist() == list(range(2, len(vocabulary)))
    assert vocabulary.encode("\ud800☃").tolist() == [UNKNOWN, UNKNOWN]


def same(a, b):
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert torch.equal(a.mask, b.mask)
    assert a.count == b.count
    none = torch.zeros_like(a.x, dtype=torch.bool)
    assert torch.equal(none if a.reset is None else a.reset, none if b.reset is None else b.reset)


def joined(shards):
    """The batch whose rows are those of the shards' batches, side by side."""
    x, y, mask = (torch.cat([getattr(s, a) for s in shards], 1) for a in ("x", "y", "mask"))
    none = [torch.zeros_like(s.x, dtype=torch.bool) for s in shards]
    reset = torch.cat([n if s.reset is None else s.reset for n, s in zip(none, shards, strict=True)], 1)
    return Batch(x, y, mask, shards[0].count, reset)


@MORE
@given(DOCUMENTS, st.integers(1, 5), st.integers(1, 9), st.integers(0, 30), st.integers(1, 3))
def test_a_stream_goes_back_to_any_position_with_any_number_of_processes(texts, count, chunk, steps, world):
    count = min(count, sum(map(len, texts)))
    with written(texts) as documents, blocks_of(7):
        text = Characters(documents)
        vocabulary = Vocabulary(text.known)
        straight = TextStream(text, vocabulary, count, chunk, Shard())
        for _ in range(steps):
            next(straight)
        position = json.loads(json.dumps(straight.position()))
        shards = [TextStream(text, vocabulary, count, chunk, Shard(r, world)) for r in range(world)]
        for shard in shards:
            next(shard)
            shard.seek(position)
            assert shard.position() == position
            assert shard.epoch == straight.epoch
        for _ in range(3):
            same(next(straight), joined([next(s) for s in shards]))


def test_a_position_among_other_lanes_is_refused():
    with written(["abcdefgh"]) as documents:
        text = Characters(documents)
        stream = TextStream(text, Vocabulary(text.known), 2, 1, Shard())
        with pytest.raises(InputError, match="position is one of 3 lanes, the stream has 2: use --batch 3"):
            stream.seek({"lanes": 3, "characters": 0})


@MORE
@given(DOCUMENTS, st.integers(1, 5), st.integers(1, 9), st.integers(0, 6), st.integers(1, 3))
def test_held_out_characters_count_once_each_with_their_context(texts, count, chunk, warm_up, world):
    with written(texts) as documents, blocks_of(7), mock.patch.object(lanes, "WARM_UP", warm_up):
        text = Characters(documents)
        vocabulary = Vocabulary(text.known[::2])  # half of the characters are unknown
        shards = [list(held_out_batches(text, vocabulary, count, chunk, Shard(r, world))) for r in range(world)]
        whole = list(held_out_batches(text, vocabulary, count, chunk, Shard()))
    for one, parts in zip(whole, zip(*shards, strict=True), strict=True):
        assert one.count == int(one.mask.sum()) > 0
        same(one, joined(parts))
    x, y, mask = (torch.cat([getattr(b, a) for b in whole]) for a in ("x", "y", "mask"))
    inputs, targets = (torch.cat([a[:, b][mask[:, b]] for b in range(count)]).tolist() for a in (x, y))
    oracle = lane_oracle(texts, vocabulary, 0, 1, text.total)
    assert targets == [target for _, target in oracle]
    for i, (seen, (expected, _)) in enumerate(zip(inputs, oracle, strict=True)):
        begins_blind = warm_up == 0 and any(i == b * text.total // count for b in range(count))
        assert seen == expected or (begins_blind and seen == START)


def test_only_blocks_are_read():
    sizes = []

    def spy(path, begin, end):
        sizes.append(end - begin)
        return corpus.read_bytes(path, begin, end)

    with written(["abc" * 5000]) as documents, blocks_of(64), mock.patch.object(characters, "read_bytes", spy):
        text = Characters(documents)
        stream = TextStream(text, Vocabulary(text.known), 2, 100, Shard())
        for _ in range(20):
            next(stream)
        list(text.read())
    assert max(sizes) <= 64 + 3


# What is held out


@MORE
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.integers(1, 400))
def test_the_parts_of_a_split_are_disjoint_and_complete(sizes, most):
    with written(["é\n" * (n // 3) + "x" * (n % 3) for n in sizes]) as documents:
        with mock.patch.object(corpus, "HELD_OUT_BYTES", most):
            training, held_out = split(documents)
            assert (training, held_out) == split(documents)
        parts = read(training), read(held_out)  # decodes: no character is cut
        whole = read(documents)
    seen = [(d.name, byte) for d in training + held_out for byte in range(d.begin, d.end)]
    assert len(seen) == len(set(seen)) == sum(sizes)
    target = min(most, max(1, round(0.05 * sum(sizes))))
    assert target / 4 <= sum(d.size for d in held_out) <= target + 3
    cut = [d for d in held_out if d.begin > 0]
    assert len(cut) <= 1
    for d in held_out:
        if d.begin == 0 and d.size == documents[int(d.name[:2])].size:
            assert whole[int(d.name[:2])] in parts[1]


def test_a_single_file_is_cut_at_a_line_near_its_last_twentieth(tmp_path):
    lines = [f"line {i} of a text with ü and 中\n" for i in range(1000)]
    (tmp_path / "a.txt").write_text("".join(lines))
    training, held_out = map(read, split(find_documents(tmp_path / "a.txt", "")))
    assert "".join(training + held_out) == "".join(lines)
    assert held_out[0].startswith("line 95")


def test_without_a_line_end_the_cut_is_between_characters(tmp_path):
    for n in range(1, 200):
        (tmp_path / "a.txt").write_text("中" * n)
        training, held_out = map(read, split(find_documents(tmp_path / "a.txt", "")))
        assert "".join(training + held_out) == "中" * n
        assert len(held_out[0]) == max(1, math.ceil(round(0.15 * n) / 3))


def test_the_end_of_a_dominating_file_makes_up_for_small_ones():
    with written(["x\n" * 50_000, "y\n" * 10]) as documents:
        training, held_out = split(documents)
    assert [d.name for d in training] == ["00.txt"]
    assert [(d.name, d.size) for d in held_out] == [("01.txt", 20), ("00.txt", 4980)]


def test_the_standard_library_is_the_default():
    task = Text(TextOptions())
    names = {d.name for d in find_documents(None, "")}
    assert {"ast.py", "json/decoder.py"} <= names
    assert not any(set(Path(n).parts) & {"test", "tests", "idle_test", "site-packages", "lib2to3"} for n in names)
    batch = next(task.stream(Shard()))
    assert batch.x.shape == (64, 32)
    assert batch.reset is not None
    assert batch.reset[0].all()
    assert sum(b.count for b in task.validation(Shard())) == task._held_out.total
    assert task.sizes().symbols == task.sizes().outputs == len(task.spec()["vocabulary"]) + 2
    assert json.loads(json.dumps(task.fingerprint())) == Text(TextOptions()).fingerprint()
    assert task.score(math.log(2)) == 1


def test_a_folder_gives_what_the_glob_matches_and_nothing_hidden(tmp_path):
    for name in ("b.py", "a/c.py", "a/n.md", ".git/x.py", "a/.y.py", "__pycache__/z.py", "a/empty.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else "text\n")
    assert [d.name for d in find_documents(tmp_path, "**/*")] == ["a/c.py", "a/n.md", "b.py"]
    assert [d.name for d in find_documents(tmp_path, "**/*.py")] == ["a/c.py", "b.py"]


def text_of(folder, text, **options):
    path = folder / "text.txt"
    path.write_bytes(text.encode())
    return Text(TextOptions(data=path, **{"batch": 2, "chunk": 8, **options}))


def test_the_fingerprint_follows_the_data_and_not_the_folder(tmp_path):
    tasks = []
    for name, text in [("a", "abc\n" * 50), ("b", "abc\n" * 50), ("c", "abd\n" * 50), ("d", "abc\n" * 51)]:
        (tmp_path / name).mkdir()
        tasks.append(text_of(tmp_path / name, text).fingerprint())
    assert tasks[0] == tasks[1]
    assert tasks[0] != tasks[2]
    assert tasks[0] != tasks[3]


# What the report says


class Bigram(nn.Module):
    """A model without memory: fixed net outputs for each input symbol."""

    def __init__(self, symbols):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(symbols, symbols, dtype=torch.float64, generator=generator))

    def forward(self, x, state=None, reset=None):
        return self.table[x], None


def test_the_report_is_what_a_direct_calculation_gives(tmp_path):
    known, unknown = "the cat sat on the mat\n" * 40, "a dog☃ and 🙂\n"
    task = text_of(tmp_path, known + unknown * 2)
    held_out = (known + unknown * 2).encode()[task._held_out.documents[0].begin :].decode()
    assert held_out == unknown * 2
    v = Vocabulary(task.spec()["vocabulary"])
    model = Bigram(len(v))
    report = task.report(model)

    log_p = torch.log_softmax(model.table.detach(), -1)
    symbols = [START, *v.encode(held_out).tolist()]
    strangers = sum(s == UNKNOWN for s in symbols)
    bits = -sum(float(log_p[a, b]) for a, b in itertools.pairwise(symbols)) / math.log(2)
    bits += strangers * math.log2(0x110000 - 2048 - len(v.characters))
    frequencies = [n / len(held_out) for n in Counter(held_out).values()]
    entropy = -sum(p * math.log2(p) for p in frequencies)
    xz = 8 * len(lzma.compress(held_out.encode(), preset=9 | lzma.PRESET_EXTREME)) / len(held_out)
    numbers = list(report.values())
    assert strangers == 2 * sum(c not in v.characters for c in unknown) > 0
    assert numbers[:3] == pytest.approx([bits / len(held_out), entropy, xz], rel=1e-10)
    assert numbers[3:6] == [len(held_out), len(known), strangers]
    assert report["sample"]
    assert set(report["sample"]) <= set(known)


def test_yardsticks_of_a_plain_text():
    with written(["abab", "cdcd"]) as documents:
        text = Characters(documents)
        assert unigram_entropy(text) == pytest.approx(2, rel=1e-12)
        assert xz_bits(text) == 8 * len(lzma.compress(b"ababcdcd", preset=9 | lzma.PRESET_EXTREME))


# What is written


def writer(vocabulary="abcdefgh \n", hidden=12):
    torch.manual_seed(0)
    n = len(vocabulary) + 2
    net = Network(nn.LSTM(8, hidden), hidden, n, Softmax(), nn.Embedding(n, 8))
    with torch.no_grad():
        net.output.weight.mul_(20)
        net.output.bias[:2] += 100  # it would like nothing better than to write the symbols that are no characters
    return net, {"vocabulary": vocabulary}


def continuation(**options):
    model, spec = writer()
    return "".join(Text.predict(model, spec, PredictOptions(**{"length": 60, **options})))


def test_greedy_writing_is_the_likeliest_character_after_all_that_was_written():
    model, spec = writer()
    v = Vocabulary(spec["vocabulary"])
    text = "abc"
    for _ in range(20):
        z, _ = model(torch.tensor([START, *v.encode(text).tolist()]).unsqueeze(1))
        text += v.character(int(z[-1, 0, 2:].argmax()) + 2)
    assert continuation(prompt="abc", temperature=0, length=20) == text[3:]


def test_drawn_characters_follow_the_temperature():
    model, spec = Bigram(6), {"vocabulary": "wxyz"}
    options = PredictOptions(length=4000, temperature=0.5, prompt="")
    text = "".join(Text.predict(model, spec, options))
    follows = Counter(b for a, b in itertools.pairwise(text) if a == "x")
    p = torch.softmax(model.table[3, 2:] / 0.5, -1)
    assert [follows[c] / follows.total() for c in "wxyz"] == pytest.approx(p.tolist(), abs=0.05)


def test_writing_depends_on_the_seed_and_on_nothing_else(tmp_path):
    assert continuation(seed=3) == continuation(seed=3) != continuation(seed=4)
    assert continuation(prompt="ab☃") != continuation(prompt="abc")
    for before in ("", "é" * 9000):
        (tmp_path / "a.txt").write_text(before + "fade" * 600)
        assert continuation(data=tmp_path / "a.txt") == continuation(prompt=("fade" * 600)[-2000:])
    assert continuation(data=tmp_path / "a.txt", prompt="ab") == continuation(prompt="ab")
    assert continuation(temperature=1e-300) == continuation(temperature=0)


def test_writing_streams():
    model, spec = writer()
    pieces = Text.predict(model, spec, PredictOptions(length=10**9))
    assert all(len(next(pieces)) == 1 for _ in range(5))


# What cannot be used


def message(make):
    with pytest.raises(InputError) as e:
        make()
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("at", [0, 5, 31, 32, 33, 99])
def test_a_binary_or_non_utf8_file_is_named_with_the_byte(tmp_path, at):
    good = ("é" * 50).encode()
    path = tmp_path / "bad.txt"
    with blocks_of(16):
        path.write_bytes(good[:at] + b"\0" + good[at + 1 :])
        assert f"{path} is binary, it has a NUL byte at byte {at}: " in message(lambda: Text(TextOptions(data=path)))
        path.write_bytes(good[: at // 2 * 2] + b"\xff" + good)
        assert f"{path} is not UTF-8 at byte {at // 2 * 2} (invalid start byte): " in message(
            lambda: Text(TextOptions(data=path))
        )
    path.write_bytes(good[:-1])
    assert f"is not UTF-8 at byte {len(good) - 2} (unexpected end of data)" in message(lambda: Characters(find(path)))


def find(path):
    return find_documents(path, "**/*")


@pytest.mark.parametrize(
    ("name", "glob", "says"),
    [
        ("none.txt", "**/*", "none.txt does not exist: give "),
        ("empty.txt", "**/*", "empty.txt is empty: give "),
        ("folder", "**/*.md", "folder matches --glob '**/*.md' (hidden ones do not count): try '**/*'"),
        ("folder", "/*", "--glob '/*' is not a pattern below a folder "),
        ("folder", "", "--glob '' is not a pattern below a folder "),
        ("folder", "*.txt", "folder has only empty files for --glob '*.txt': give "),
        ("pipe", "**/*", "pipe is not a regular file, "),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, glob, says):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").touch()
    (tmp_path / "folder" / ".b.md").write_text("hidden")
    os.mkfifo(tmp_path / "pipe")
    assert says in message(lambda: Text(TextOptions(data=tmp_path / name, glob=glob)))


def test_what_may_not_be_read_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    denied = PermissionError(13, "Permission denied")
    with mock.patch("builtins.open", side_effect=denied):
        assert "a.txt (Permission denied): give" in message(lambda: Text(TextOptions(data=tmp_path / "a.txt")))
    with mock.patch("os.scandir", side_effect=denied):
        assert f"{tmp_path} (Permission denied): give" in message(lambda: Text(TextOptions(data=tmp_path)))


def test_too_small_a_text_and_impossible_sizes_are_refused(tmp_path):
    says = message(lambda: text_of(tmp_path, "x" * 100, batch=8, chunk=64))
    assert says == (
        "the text has 95 characters to train on and 5 held out, but 8 lanes (--batch) of at least 64 (--chunk) need 512: "
        "give more text or a smaller --batch"
    )
    assert "the text has 0 characters to train on" in message(lambda: text_of(tmp_path, "x", batch=1, chunk=1))
    for name in ("batch", "chunk", "embedding"):
        options = {name: 0}
        assert message(lambda o=options: text_of(tmp_path, "x" * 100, **o)) == (f"--{name} is 0: 1 or more is wanted")


@pytest.mark.parametrize("content", ["ab", "ä" * 100, "ab" * 100])
def test_a_text_that_changes_while_it_is_read_is_noticed(tmp_path, content):
    task = text_of(tmp_path, "abcd" * 50)
    (tmp_path / "text.txt").write_text(content)
    stream = task.stream(Shard())
    if content == "ab" * 100:  # of the same form: only the fingerprint tells, when the run is resumed
        next(stream)
        assert text_of(tmp_path, content).fingerprint() != task.fingerprint()
    else:
        assert "text.txt has changed while it was in use: " in message(lambda: next(stream))


def test_what_cannot_be_continued_is_refused_before_the_first_piece(tmp_path):
    model, spec = writer()

    def refused(**options):
        return message(lambda: Text.predict(model, spec, PredictOptions(**options)))

    assert refused(temperature=-1.0) == "--temperature is -1.0: 0 (the likeliest always) or more is wanted"
    assert refused(temperature=math.nan).startswith("--temperature is nan")
    assert refused(length=0) == "--length is 0: at least 1 character is wanted"
    assert "does not exist" in refused(data=tmp_path / "none")
    assert "is a folder" in refused(data=tmp_path)
    path = tmp_path / "a"
    path.touch()
    assert "is empty" in refused(data=path)
    path.write_bytes(b"x" * 10_000 + b"\xff" + b"x" * 100)
    assert "is not UTF-8 at byte 10000 " in refused(data=path)
    path.write_bytes(b"x" * 10_000 + b"\0" + b"x" * 100)
    assert "has a NUL byte at byte 10000: " in refused(data=path)


# Byte order marks and UTF-16

MARKS = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}


def saved(folder, texts, codec=None):
    """The documents of files with these texts; with a codec, each begins with its byte order mark."""
    documents = []
    for i, text in enumerate(texts):
        path = Path(folder, f"{i:02}.txt")
        path.write_bytes(text.encode() if codec is None else MARKS[codec] + text.encode(codec))
        documents.append(find(path)[0])
    return documents


@pytest.mark.parametrize("codec", MARKS)
@given(DOCUMENTS, st.integers(1, 4), st.integers(1, 9), st.sampled_from([4, 6, 8, 14]))
def test_a_byte_order_mark_is_no_character_and_utf16_reads_as_utf8_does(codec, texts, count, chunk, block):
    texts = ["a" + text for text in texts]  # a mark within the text is a character
    count = min(count, sum(map(len, texts)))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other, blocks_of(block):
        plain, marked = Characters(saved(one, texts)), Characters(saved(other, texts, codec))
        assert marked.total == plain.total == sum(map(len, texts))
        assert marked.known == plain.known == "".join(sorted(set("".join(texts))))
        assert b"".join(marked.read()) == b"".join(plain.read()) == "".join(texts).encode()
        vocabulary = Vocabulary(plain.known)
        streams = [TextStream(text, vocabulary, count, chunk, Shard()) for text in (plain, marked)]
        for _ in range(-(-2 * plain.total // chunk)):
            same(*map(next, streams))


@pytest.mark.parametrize("codec", MARKS)
@given(st.lists(st.text(CHARACTERS, min_size=1, max_size=300), min_size=1, max_size=5), st.integers(1, 400))
def test_a_split_cuts_no_character_of_any_encoding(codec, texts, most):
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(corpus, "HELD_OUT_BYTES", most):
        documents = saved(folder, texts, codec)
        training, held_out = split(documents)
        parts = {d.name: "" for d in documents}
        for d in sorted(training + held_out, key=lambda d: d.begin):
            parts[d.name] += d.path.read_bytes()[d.begin : d.end].decode(codec)
    assert list(parts.values()) == texts
    assert held_out


def test_utf16_is_cut_at_a_line_as_utf8_is(tmp_path):
    text = "".join(f"line {i} \u0a0d\u0d0a 𐀀\n" for i in range(1000))  # other characters hold the bytes of a line feed
    (tmp_path / "a.txt").write_bytes(text.encode("utf-16"))
    training, held_out = split(find(tmp_path / "a.txt"))
    parts = [d.path.read_bytes()[d.begin : d.end].decode("utf-16-le") for d in training + held_out]
    assert "".join(parts) == text
    assert parts[1].startswith("line 95")


def test_a_text_in_utf16_is_learned_continued_and_called_by_its_name(tmp_path):
    text = "aé𐀀\n" * 500
    reports, ends = [], []
    for name, data in (("a", text.encode()), ("b", b"\xef\xbb\xbf" + text.encode()), ("c", text.encode("utf-16"))):
        (tmp_path / name).write_bytes(data)
        task = Text(TextOptions(data=tmp_path / name, batch=2, chunk=5))
        model = network(task)
        reports.append(task.report(model))
        assert task.spec() == {"vocabulary": "\naé𐀀"}
        ends.append("".join(Text.predict(model, task.spec(), PredictOptions(data=tmp_path / name, length=20))))
    assert ends[0] == ends[1] == ends[2]
    assert [report.pop("files in UTF-16", 0) for report in reports] == [0, 0, 1]
    assert reports[1] == reports[0]


def network(task):
    torch.manual_seed(0)

    class Small(nn.Module):
        def __init__(self, symbols):
            super().__init__()
            self.embedding, self.layer = nn.Embedding(symbols, 4), nn.GRU(4, 8)
            self.output = nn.Linear(8, symbols)

        def forward(self, x, state=None, reset=None):
            outputs, state = self.layer(self.embedding(x), state)
            return self.output(outputs), state

    return Small(task.sizes().outputs)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("ab".encode("utf-16-le") * 50, "is UTF-16 without a byte order mark, it has a NUL byte at byte 1: "),
        ("ab".encode("utf-16-be") * 50, "is UTF-16 without a byte order mark, it has a NUL byte at byte 0: "),
        ("ab".encode("utf-16") + b"x", "is not UTF-16 at byte 6 (truncated data): "),
        ("ab".encode("utf-16") + b"\x3d\xd8a\0", "is not UTF-16 at byte 6 (illegal UTF-16 surrogate): "),
        ("a\0b".encode("utf-16"), "is binary, it has a NUL byte at byte 4: "),
        ("ab".encode("utf-32"), "is UTF-32: a text in UTF-8 or UTF-16 is wanted"),
        (b"\xef\xbb\xbf", "is empty: "),
        (b"\xff\xfe", "is empty: "),
    ],
)
def test_other_encodings_are_called_by_their_names(tmp_path, data, says):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert says in message(lambda: Characters(find(path)))
    assert says in message(lambda: Text.predict(nn.Linear(1, 1), {"vocabulary": "ab"}, PredictOptions(data=path)))


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0c", "\r"])
def test_a_text_is_cut_at_line_feeds_alone(tmp_path, separator):
    text = "".join(f"line {i}{separator}goes on\n" for i in range(1000))
    (tmp_path / "a.txt").write_bytes(text.encode())
    training, held_out = map(read, split(find(tmp_path / "a.txt")))
    assert "".join(training + held_out) == text
    assert held_out[0].startswith("line 95")


def test_a_device_is_no_text(tmp_path):
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    assert "not a regular file, but a device" in message(lambda: find(tmp_path / "zero.txt"))
    (tmp_path / "text.txt").write_text("text")
    os.mkfifo(tmp_path / "pipe.txt")
    assert [d.name for d in find_documents(tmp_path, "*.txt")] == ["text.txt"]  # the others are passed over


def test_a_text_of_one_character_has_its_report(tmp_path):
    """Its unigram entropy is 0, which has no place on a logarithmic axis."""
    (tmp_path / "a.txt").write_text("a" * 3000)
    sizes = ["--hidden", 8, "--batch", 4, "--chunk", 20, "--steps", 60, "--validate-every", 30, "--watch", 30]
    done = bptt("train", "text", "--data", tmp_path / "a.txt", *sizes, "--lr", 0.05, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "could not" not in done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert str(report["bits per character, unigram entropy of the same text"]) == "0.0"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "log scale" in page
    assert "unigram entropy of the same text: 0." in page
    assert "Not yet" not in page
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
