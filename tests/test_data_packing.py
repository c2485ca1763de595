import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data.packing import deal, pack, pack_sequences


def test_best_fit_takes_the_fullest_row_with_room():
    # 6 and 5 open two rows, with 4 and 5 free; 4 fills the first; 3 and 2 fill the second; 1 opens a third.
    assert pack([3, 6, 2, 5, 4, 1], 10) == [[1, 4], [3, 0, 2], [5]]
    assert pack([2, 2, 2], 4) == [[0, 1], [2]]
    assert pack([], 4) == []


@given(st.lists(st.integers(1, 20), max_size=60))
def test_every_sequence_is_in_one_row_and_no_row_overflows(lengths):
    rows = pack(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    # Two rows that would fit into one are never left by best fit.
    loads = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > 20


def test_rows_are_dealt_there_and_back():
    # Sorted: 9 8 7 6, then 5 4. The devices hold rows 0, 1 and 2, 3; of the first micro-batch they get 9 + 6 and 8 + 7.
    assert deal([4, 9, 7, 5, 8, 6], rows=4, ways=2) == [6, 0, 3, 4, 2, 1]
    assert deal([1, 3, 2], rows=2, ways=1) == [2, 0, 1]


@given(st.lists(st.integers(1, 50), max_size=40), st.sampled_from([(1, 1), (4, 1), (4, 2), (4, 4), (12, 3), (8, 2)]))
def test_devices_of_a_micro_batch_have_about_as_many_tokens(loads, shape):
    rows, ways = shape
    places = deal(loads, rows, ways)
    assert len(set(places)) == len(loads) and places == deal(loads, rows, ways)
    micro_batches = -(-len(loads) // rows)
    laid = np.zeros((micro_batches, rows), int)
    laid.reshape(-1)[places] = loads
    by_device = laid.reshape(micro_batches, ways, rows // ways).sum(-1)
    assert (by_device.max(-1) - by_device.min(-1) <= laid.max(-1) - laid.min(-1)).all()
    if micro_batches > 1:  # alike rows lie together, and only the last micro-batch has empty ones
        assert (laid[:-1].min(-1) >= laid[1:].max(-1)).all() and laid[:-1].all()


def test_a_batch_by_hand():
    batch, filled = pack_sequences(
        [[5, 6, 7], [1, 2, 3, 4]],
        [[False, True, True], [True, False, True, False]],
        rows=1,
        length=8,
        advantages=[-2.0, 0.5],
        sampler_logprobs=[[9.0, -0.1, -0.2], [9.0, 9.0, -0.3, 9.0]],
        micro_batches=2,
    )
    assert filled == 1
    # The longer sequence comes first. Its first token is marked as trained, but is no position's target: |o| is 1.
    expected = {
        "tokens": [1, 2, 3, 4, 5, 6, 7, 0],
        "positions": [0, 1, 2, 3, 0, 1, 2, 0],
        "segments": [1, 1, 1, 1, 2, 2, 2, 0],
        "targets": [2, 3, 4, 0, 6, 7, 0, 0],
        "mask": [0, 1, 0, 0, 1, 1, 0, 0],
        "weights": [0, 1, 0, 0, 0.5, 0.5, 0, 0],
        "advantages": [0, 0.5, 0, 0, -2, -2, 0, 0],
        "sampler_logprobs": [0, -0.3, 0, 0, -0.1, -0.2, 0, 0],
    }
    for name, row in expected.items():
        np.testing.assert_allclose(getattr(batch, name), np.array([[row], [[0] * 8]], np.float32), rtol=1e-6, err_msg=name)
    assert batch.old_logprobs is None and batch.ref_logprobs is None
    assert [getattr(batch, n).dtype.name for n in ("tokens", "segments", "mask", "weights")] == [
        "int32",
        "int32",
        "bool",
        "float32",
    ]


@pytest.mark.parametrize("normalize", ["token", "constant"])
def test_other_normalizations_count_every_target_as_one(normalize):
    batch, _ = pack_sequences([[5, 6, 7]], [[0, 1, 1]], rows=1, length=4, normalize=normalize)
    assert batch.weights.ravel().tolist() == [1, 1, 0, 0]
    assert batch.advantages is None and batch.sampler_logprobs is None


sequence = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 99), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
        st.lists(st.floats(-9, -0.5, width=32), min_size=n, max_size=n),
        st.floats(-3, 3, width=32),
    )
)


@settings(max_examples=60)
@given(st.lists(sequence, max_size=12), st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2)]), st.booleans())
def test_unpacking_gives_back_every_sequence(sequences, shape, normalized):
    rows, ways = shape
    tokens, trained, logprobs, advantages = (list(x) for x in zip(*sequences, strict=True)) if sequences else ([], [], [], [])
    batch, filled = pack_sequences(
        tokens,
        trained,
        rows=rows,
        length=10,
        advantages=advantages,
        sampler_logprobs=logprobs,
        normalize="sequence" if normalized else "token",
        ways=ways,
    )
    assert batch.tokens.shape[0] == max(filled, 1)
    found = []
    for m in range(batch.tokens.shape[0]):
        assert (batch.segments[m] > 0).any() == (m < filled)
        for b in range(rows):
            segments = batch.segments[m, b]
            present = segments[segments > 0]
            assert list(present) == sorted(present) and set(present) == set(range(1, len(set(present)) + 1))
            for name in range(1, len(set(present)) + 1):
                at = segments == name
                (tok, pos, tgt, mask, weight, adv, lp) = (
                    getattr(batch, f)[m, b][at]
                    for f in ("tokens", "positions", "targets", "mask", "weights", "advantages", "sampler_logprobs")
                )
                n = len(tok)
                assert pos.tolist() == list(range(n)) and tgt.tolist() == tok[1:].tolist() + [0] and not mask[-1]
                total = 1.0 if normalized else mask.sum()
                np.testing.assert_allclose(weight.sum(), total if mask.any() else 0, rtol=1e-5)
                assert len(set(weight[mask])) <= 1 and not weight[~mask].any() and not lp[~mask].any()
                assert len(set(adv[mask])) <= 1 and not adv[~mask].any()
                found.append((tok.tolist(), mask[:-1].tolist(), adv[mask][:1].tolist(), lp[mask].tolist()))
            padding = segments == 0
            assert not batch.tokens[m, b][padding].any() and not batch.mask[m, b][padding].any()
    expected = [
        (t, list(tr[1:]), [a] * any(tr[1:]), [x for x, y in zip(lp[1:], tr[1:], strict=True) if y])
        for t, tr, lp, a in sequences
    ]
    assert sorted(found) == sorted(expected)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="sequence 1 has 5 tokens; a row takes 1 to 4"):
        pack_sequences([[1], [1] * 5], [[0], [1] * 5], rows=1, length=4)
    with pytest.raises(ValueError, match="sequence 0 has 0 tokens"):
        pack_sequences([[]], [[]], rows=1, length=4)
    with pytest.raises(ValueError, match="trained 0 has 1 entries for 2 tokens"):
        pack_sequences([[1, 2]], [[1]], rows=1, length=4)
    with pytest.raises(ValueError, match="3 rows do not divide among 2 devices"):
        pack_sequences([[1, 2]], [[0, 1]], rows=3, length=4, ways=2)
    with pytest.raises(ValueError, match="3 packed rows need 2 micro-batches of 2 rows, more than micro_batches=1"):
        pack_sequences([[1] * 4] * 3, [[1] * 4] * 3, rows=2, length=4, micro_batches=1)
