"""Runs of words that rows share with a benchmark, and rows that are alike."""

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import dedupe, words
from r1jax.data.decontaminate import COMMON, Index, Match
from r1jax.data.dedupe import find_groups

SOLUTION = "First note that three consecutive integers sum to three times the middle one, so the middle one must be 14."
QUESTION = "Find three consecutive integers whose sum is 42 and give the largest of them as your final answer."
CHINESE = "求所有满足条件的三个连续整数，使它们的和等于四十二，并写出其中最大的一个。"


def found(benchmark, *texts, size=10):
    """The texts of a row that match a benchmark's one row."""
    index = Index([benchmark], size)
    return [text for text in texts if index.matches({"prompt": "?", "completion": text})]


ROW = {"prompt": QUESTION, "answer": "15", "solution": SOLUTION}
TEN = "three consecutive integers whose sum is 42 and give the"


@pytest.mark.parametrize(
    "text, matches",
    [
        (QUESTION, True),
        (f"Once more: {TEN} smallest.", True),
        (f"Once more: {TEN.rpartition(' ')[0]} smallest.", False),  # 9 words
        (TEN.upper().replace(" ", "\n\t  ") + "!", True),
        (re.sub(r"(\w+)", r"*\1*,", TEN), True),  # punctuation
        (TEN.replace("42", "43"), False),
        ("Since three consecutive integers sum to three times the middle one, so the answer is 15.", True),  # of the solution
        ("15", False),  # a short answer says nothing
        ("The answer is 15.", False),
        ("", False),
    ],
)
def test_ten_words_in_a_row(text, matches):
    assert bool(found(ROW, text)) == matches


def test_a_match_says_what_is_shared_and_with_whom():
    messages = [{"role": "system", "content": "You solve problems."}, {"role": "user", "content": CHINESE}]
    index = Index([{"prompt": messages, "answer": "15"}, ROW])
    row = {"id": 7, "prompt": "?", "notes": [{"text": f"Hm: {TEN} LARGEST, then?"}], "completion": f"<think>{CHINESE}</think>"}
    expected = [Match(0, "completion", CHINESE[:-1].replace("，", ",")), Match(1, "notes", f"{TEN} largest")]
    assert index.matches(row) == expected
    assert index.matches({"prompt": "You solve problems."}) == []  # what the system says is no question


def test_chinese_counts_16_characters_as_10_words():
    row = {"prompt": CHINESE}
    plain = CHINESE.replace("，", "").replace("。", "")
    assert found(row, plain[3:19], plain[3:18], f"题目：{plain[3:11]} {plain[11:19]}") == [
        plain[3:19],
        f"题目：{plain[3:11]} {plain[11:19]}",
    ]
    # 5 words and 8 characters are 10 words as well.
    mixed = {"prompt": "Let x be an integer 使它们的和等于四，and nothing else, so that it is a long question"}
    assert found(mixed, "be an integer 使它们的和等于四 and nothing", "a long integer 使它们的和等于四 but nothing") == [
        "be an integer 使它们的和等于四 and nothing"
    ]


@pytest.mark.parametrize(
    "question, match, none",
    [
        ("What is 12 + 34?", ["What is 12+34 ?", "Now: what is $12 + 34$"], ["What is 12 - 34?", "What is 112 + 34?"]),
        ("12*13=", ["12 * 13 ="], ["12 * 13 = 156", "12 + 13 =", "1213="]),  # 2 words: it must be all
        ("Sum of 1,000 and 3.5", ["the sum of 1000 and 3.5"], ["the sum of 1000 and 35", "the sum of 1 and 3.5"]),
        ("一加一等于几？", ["请问一加一等于几"], ["一加二等于几"]),
        ("?!", [], ["?!", "", "word"]),
    ],
)
def test_a_short_question_matches_as_a_whole(question, match, none):
    assert found({"prompt": question}, *match, *none) == match


def test_the_benchmarks_own_way_of_asking_is_no_match():
    asks = "Reason step by step and put your final answer in a box"
    names = ["apple", "pear", "plum", "fig", "lime", "kiwi", "date", "nut", "melon", "grape", "mango"]
    rows = [{"prompt": f"How much is a {name}? {asks}"} for name in names]
    assert len(rows) == COMMON + 1
    strange = {"prompt": f"Prove that there is no largest prime. {asks}."}
    assert Index(rows).matches(strange) == [] and Index(rows).common > 0
    assert [m.row for m in Index(rows[1:]).matches(strange)] == list(range(COMMON))
    assert [m.row for m in Index(rows).matches(rows[4])] == [4]
    # The same question again and again, as where a file holds several answers to each, is one question.
    again = [{"prompt": strange["prompt"], "completion": f"Answer {i}"} for i in range(2 * COMMON)]
    assert len(Index(again).matches(strange)) == 2 * COMMON


WORDS = st.sampled_from(["a", "b", "c", "d", "7", "x1", "的", "了", "和"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(WORDS, max_size=30), min_size=1, max_size=4), st.lists(WORDS, max_size=40), st.integers(3, 7))
def test_runs_are_those_of_a_search_word_by_word(benchmark, text, size):
    """Against an independent search, with long texts of the benchmark only, so that short questions play no part."""

    def weigh(part):
        return sum(5 if word in "的了和" else 8 for word in part)

    def pieces(text):
        return [word for part in text for word in (["x", "1"] if part == "x1" else [part])]

    rows = [{"prompt": "?", "solution": " ".join(part)} for part in benchmark]
    target, expected = pieces(text), set()
    for number, part in enumerate(map(pieces, benchmark)):
        for i in range(len(part)):
            for j in range(i + 1, len(part) + 1):
                if weigh(part[i:j]) >= 8 * size:
                    if any(target[k : k + j - i] == part[i:j] for k in range(len(target))):
                        expected.add(number)
                    break
    assert {m.row for m in Index(rows, size).matches({"prompt": " ".join(text)})} == expected


# -- Duplicates


def rows(*prompts, **more):
    return [(str(i), {"prompt": prompt, **more}) for i, prompt in enumerate(prompts)]


def groups(*prompts, threshold=0.8):
    return [group.rows for group in find_groups(rows(*prompts), threshold)]


TEXT = " ".join(f"{'abcdefgh'[i % 8]}{'xyz' * (i % 5)}{'uvw'[i % 3]}" for i in range(60))


def test_near_duplicates_of_a_prompt():
    changed = TEXT.replace(TEXT.split()[20], "other", 1)
    assert groups(TEXT, "else", changed, TEXT.upper() + "!") == [[0, 2, 3]]
    assert groups(TEXT, " ".join(TEXT.split()[:40])) == []
    assert groups("How many? 12 + 34", "How many? 12 - 34", "how many 12+34") == [[0, 2]]
    assert groups("!!!", "???", "!!!", "") == [[0, 2]]
    # Another number makes another problem, and so does another order of the numbers.
    assert groups(f"{TEXT} 3 apples and 4 pears", f"{TEXT} 3 apples and 5 pears", f"{TEXT} 4 apples and 3 pears") == []
    assert groups(f"{TEXT} 1,000 apples", f"{TEXT} 1000 apples") == [[0, 1]]


def test_other_completions_of_a_prompt_stay():
    answers = ["So it is " + " ".join(random.Random(i).choices("abcdefghij", k=80)) for i in range(3)]
    held = [(str(i), {"prompt": TEXT, "completion": answer}) for i, answer in enumerate([*answers, answers[1]])]
    assert [group.rows for group in find_groups(held, 0.8)] == [[1, 3]]


def test_a_chain_is_one_group():
    chain = [TEXT]
    for i in (10, 30, 50):
        parts = chain[-1].split()
        chain.append(" ".join([*parts[:i], "new", *parts[i + 1 :]]))
    one, last = (dedupe.Shingles({"prompt": text}).hashes for text in (chain[0], chain[-1]))
    assert dedupe.similarity(one, last) < 0.7
    for order in ([0, 1, 2, 3], [3, 0, 2, 1], [1, 3, 0, 2]):
        assert groups(*(chain[i] for i in order)) == [[0, 1, 2, 3]]


def test_a_bucket_is_searched_to_the_end():
    """A star, its centre first and last, where only the centre is like the others."""
    for centre in (0, 3):
        parent = {row: row for row in range(5)}
        dedupe.unite([0, 1, 2, 3, 4], parent, lambda a, b, centre=centre: centre in (a, b) and 4 not in (a, b))
        assert len({dedupe.root(parent, row) for row in range(4)}) == 1 and dedupe.root(parent, 4) == 4


def jaccard(a, b):
    """By hand, of word 5-grams."""
    sets = [{tuple(text.split()[i : i + 5]) for i in range(max(len(text.split()) - 4, 1))} for text in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def variant(words_, changes):
    return " ".join(f"new{'abcdefghijk'[i]}" if i in changes else word for i, word in enumerate(words_))


TEXTS = st.lists(
    st.one_of(
        st.lists(st.sampled_from(["one", "two", "three", "four", "5"]), max_size=12).map(" ".join),
        st.sets(st.integers(0, 9), max_size=2).map(lambda changes: variant(TEXT.split(), changes)),
        st.sampled_from([TEXT, TEXT + " 3", TEXT + " 4"]),
    ),
    max_size=9,
)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_what_is_kept_depends_on_the_order_only_by_who_is_first(texts, rng):
    drop = {row for group in find_groups(rows(*texts), 0.8) for row in group.rows[1:]}
    kept = [text for i, text in enumerate(texts) if i not in drop]
    assert find_groups(rows(*kept), 0.8) == []  # nothing is left to drop
    assert len({tuple(text.split()) for text in kept}) == len(kept)  # no exact duplicate is missed
    order = rng.sample(range(len(texts)), len(texts))
    shuffled = find_groups(rows(*(texts[i] for i in order)), 0.8)
    ours = {frozenset(group.rows) for group in find_groups(rows(*texts), 0.8)}
    assert {frozenset(order[i] for i in group.rows) for group in shuffled} == ours
    for group in shuffled:
        assert group.rows == sorted(group.rows) and group.similarity[0] == 1


def test_pairs_above_the_threshold_are_found_and_none_below():
    """Texts of which another share is changed, against similarities counted by hand."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(5000)]
    pairs, expected = [], []
    for changes in range(0, 8):
        for _ in range(40):
            one = rng.choices(vocabulary, k=100)
            other = variant(one, set()).split()
            for i in rng.sample(range(100), changes):
                other[i] = rng.choice(vocabulary)
            pairs.append((" ".join(one), " ".join(other)))
            expected.append(jaccard(*pairs[-1]))
    for threshold in (0.6, 0.8):
        together = {tuple(g.rows): g.similarity[1] for g in find_groups(rows(*(t for p in pairs for t in p)), threshold)}
        for i, value in enumerate(expected):
            hit = (2 * i, 2 * i + 1) in together
            assert hit == (value >= threshold), (i, value)
            assert not hit or together[2 * i, 2 * i + 1] == pytest.approx(value)


def test_bands_are_as_likely_as_the_theory_says():
    """Whether MinHash is fair: pairs of a known similarity share a band of width 1 that often."""
    rng = np.random.default_rng(0)
    shared = []
    for _ in range(60):
        one, other = (dedupe.Shingles({"prompt": "?"}) for _ in range(2))
        pool = rng.integers(1 << 63, size=150, dtype=np.uint64)
        one.hashes, other.hashes = pool[:100], pool[50:]
        shared.append((one.bands(1) == other.bands(1)).mean())
    assert np.mean(shared) == pytest.approx(1 / 3, abs=0.02)


def test_hashes_of_words_are_the_same_in_every_run():
    assert words.numbers(["word", "字"]).tolist() == [5378651625018068629, 18078979492033126053]
    assert json.dumps(words.normal("Ｆｕｌｌ　ＷＩＤＴＨ ﬁ 1,234,567 (1,23)")) == '"full width fi 1234567 (1,23)"'
