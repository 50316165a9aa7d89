import torch

from datamodules.text.ngrams import ngram_hashes, sequences_sharing, shared_ngrams


def slow_ngrams(sequences, n):
    return {tuple(row[i : i + n]) for row in sequences for i in range(len(row) - n + 1)}


def test_counts_equal_sets_of_tuples():
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 3, 5):
        first = torch.randint(4, (9, 12), generator=generator)
        second = torch.randint(4, (7, 12), generator=generator)
        expected = slow_ngrams(first.tolist(), n) & slow_ngrams(second.tolist(), n)
        assert shared_ngrams(first, second, n) == len(expected)
        assert shared_ngrams(list(first), list(second), n) == len(expected)
        shared = [bool(slow_ngrams([row], n) & slow_ngrams(second.tolist(), n)) for row in first.tolist()]
        assert sequences_sharing(first, second, n).tolist() == shared


def test_hashes_of_different_ngrams_differ():
    neighbours = torch.cartesian_prod(torch.arange(60), torch.arange(60), torch.arange(60))
    assert len(set(ngram_hashes(neighbours, 3).reshape(-1).tolist())) == 60**3


def test_order_and_borders_count():
    text = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert sequences_sharing(torch.tensor([[3, 2, 1], [4, 5, 6], [2, 3, 4]]), text, 3).tolist() == [False, False, True]
    assert shared_ngrams(torch.tensor([[4, 5, 6, 7]]), text, 3) == 1


def test_sequences_shorter_than_n_share_nothing():
    lists = [torch.tensor([1, 2]), torch.tensor([1, 2, 3, 4])]
    assert sequences_sharing(lists, [torch.tensor([9, 1, 2, 3])], 3).tolist() == [False, True]
    assert sequences_sharing(torch.tensor([[1, 2]]), torch.tensor([[1, 2]]), 3).tolist() == [False]
    assert sequences_sharing(lists, [], 2).tolist() == [False, False]
