"""The weighting model: weights, symmetry, padding, and saved models in a new process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from pangu_modules.llm.weighting.model import DataWeightingModel, MixingLayer, effective_batch_size, positions, weights
from pangu_modules.llm.weighting.saving import (
    encoder_folder,
    find_encoder,
    load_rounds,
    load_weighting_model,
    round_file,
    save_weighting_model,
)


def model(seed=0, **fields):
    torch.manual_seed(seed)
    fields = {"hidden_size": 16, "num_heads": 2, "vocab_size": 50, **fields}
    built = DataWeightingModel.Config(**fields).build()
    torch.nn.init.normal_(built.output.weight)
    return built.double()


def tokens(batch=5, seq=9, seed=0):
    return torch.randint(0, 50, (batch, seq), generator=torch.Generator().manual_seed(seed))


def test_a_new_model_gives_uniform_weights():
    fresh = DataWeightingModel.Config(vocab_size=50).build()
    assert torch.equal(fresh.weights(fresh(tokens(4))), torch.full((4,), 0.25))


def test_weights_are_a_softmax_with_temperature_and_floor():
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    expected = [0.8 * float(torch.exp(s / 2) / torch.exp(logits / 2).sum()) + 0.2 / 3 for s in logits]
    found = weights(logits, tau=2.0, floor=0.2)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
    assert float(found.sum()) == pytest.approx(1)
    assert float(effective_batch_size(torch.full((8,), 1 / 8))) == pytest.approx(8)
    assert float(effective_batch_size(torch.tensor([1.0, 0.0]))) == 1


def test_bounded_scores_bound_the_ratio_of_weights():
    ids = tokens()
    free, bounded = (model(num_mix=0, score_limit=limit) for limit in (None, 0.5))
    for network in (free, bounded):
        network.output.weight.data *= 20
    scores = free(ids)
    expected = torch.stack([0.5 * (2 / (1 + torch.exp(-2 * (s - scores.mean()) / 0.5)) - 1) for s in scores])
    torch.testing.assert_close(bounded(ids), expected, rtol=1e-12, atol=1e-13)
    shares, wide = bounded.weights(bounded(ids)), free.weights(free(ids))
    assert shares.max() / shares.min() <= 0.1 + 0.9 * torch.e  # a tenth is spread evenly
    assert wide.max() / wide.min() > 1 + torch.e
    with pytest.raises(ValidationError, match="score_limit"):
        DataWeightingModel.Config(score_limit=0.0)


def test_sequences_without_targets_get_nothing():
    logits = torch.tensor([0.3, 9.0, 2.0, 9.0], dtype=torch.float64)
    valid = torch.tensor([True, False, True, False])
    found = weights(logits, floor=0.1, valid=valid)
    torch.testing.assert_close(found[valid], weights(logits[valid], floor=0.1))
    assert found[~valid].tolist() == [0, 0]
    with pytest.raises(ValueError, match="no sequence of the batch has a target token"):
        weights(logits, valid=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="B must be >= 2"):
        weights(logits[:1])


@pytest.mark.parametrize("num_mix", [0, 1, 2])
def test_order_in_the_batch_does_not_matter(num_mix):
    network, ids = model(num_mix=num_mix), tokens()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(network(ids[order]), network(ids)[order], rtol=1e-12, atol=1e-13)


def test_mixing_makes_scores_depend_on_the_others():
    ids = tokens()
    other = torch.cat([ids[:1], tokens(4, seed=1)])
    alone, mixed = model(num_mix=0), model(num_mix=1)
    torch.testing.assert_close(alone(ids)[0], alone(other)[0], rtol=1e-12, atol=1e-13)
    assert (mixed(ids)[0] - mixed(other)[0]).abs() > 1e-3
    # those without targets are not seen
    valid = torch.tensor([True, True, False, True, True])
    changed = ids.clone()
    changed[2] = 7
    torch.testing.assert_close(mixed(ids, valid=valid)[valid], mixed(changed, valid=valid)[valid], rtol=1e-12, atol=0)


def test_a_mixing_layer_adds_what_sets_sequences_apart():
    torch.manual_seed(0)
    layer, given = MixingLayer(8, 2).double(), torch.randn(5, 8, dtype=torch.float64)
    with torch.no_grad():
        query, key, value = (layer.attention_norm(given) @ layer.attention.in_proj_weight.T).chunk(3, dim=1)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            shares = torch.softmax(query[:, part] @ key[:, part].T / 2, dim=1)  # 2: root of a head's width
            heads.append(shares @ value[:, part])
        attended = torch.cat(heads, dim=1) @ layer.attention.out_proj.weight.T
        expected = given + attended - attended.sum(0) / 5
        told = layer.mlp(layer.mlp_norm(expected))
        expected = expected + told - told.sum(0) / 5
        torch.testing.assert_close(layer(given), expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(layer(given).mean(0), given.mean(0), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("score_limit", [None, 3.0])
def test_mixing_survives_noisy_hypergradients(score_limit):
    """Of three kinds of sequences one is useful, which h says with twice as much noise; SmolLM2's look like this."""
    centers, usefulness = torch.tensor([[-0.5, 0.3], [1.1, 0.6], [0.7, -0.2]]), torch.tensor([660.0, -400.0, 140.0])
    useful = []
    for seed in range(8):
        torch.manual_seed(seed)
        config = DataWeightingModel.Config(encoder="features", feature_size=2, floor=0.0, score_limit=score_limit)
        network = config.build()
        network.input_norm = torch.nn.Identity()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
        for _ in range(24):
            kinds = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
            features = centers[kinds] + 0.2 * torch.randn(8, 2)
            shares = network.weights(network(features=features))
            optimizer.zero_grad()
            (-(shares * (usefulness[kinds] + 1000 * torch.randn(8))).sum()).backward()
            optimizer.step()
        useful.append(float(shares.detach()[kinds == 0].sum()))
    assert min(useful) > 0.7  # uniform: 0.5, where a transformer layer ends with three of these seeds


def test_order_of_tokens_matters_and_padding_does_not():
    network, ids = model(), tokens()
    assert (network(ids) - network(ids.flip(1))).abs().max() > 1e-3
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[3] = 0, 0  # the whole of sequence 3
    changed = torch.where(mask == 0, 0, ids)
    first, second = network(ids, mask), network(changed, mask)
    assert first.isfinite().all()
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(
        model(num_mix=0)(ids, mask)[1], model(num_mix=0)(ids[1:2, :6])[0], rtol=1e-12, atol=1e-13
    )


def test_positions_are_sinusoids():
    table = positions(4, 6)
    for position in range(4):
        for pair in range(3):
            angle = torch.tensor(position / 10000 ** (2 * pair / 6))
            torch.testing.assert_close(table[position, 2 * pair], angle.sin())
            torch.testing.assert_close(table[position, 2 * pair + 1], angle.cos())


def test_features_take_the_place_of_tokens():
    network = model(encoder="features", feature_size=3, vocab_size=None)
    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    network(features=features).sum().backward()
    assert features.grad is None
    assert all(value.grad is not None for value in network.parameters())
    with pytest.raises(ValueError, match=r"needs features \(batch, 3\)"):
        network(tokens())
    with pytest.raises(ValueError, match="needs input_ids"):
        model()(features=features)


def test_what_is_missing_is_named():
    with pytest.raises(ValidationError, match="num_heads=3 does not divide hidden_size=16"):
        DataWeightingModel.Config(hidden_size=16, num_heads=3)
    with pytest.raises(ValidationError, match="encoder='features' needs feature_size"):
        DataWeightingModel.Config(encoder="features")
    with pytest.raises(ValueError, match="give vocab_size"):
        DataWeightingModel.Config().build()
    with pytest.raises(ValueError, match="encoder='lm' needs feature_size"):
        DataWeightingModel.Config(encoder="lm").build()


def test_saved_models_load_in_a_new_process(tmp_path):
    networks = {number: model(seed=number).float() for number in (1, 3)}
    for number, network in networks.items():
        save_weighting_model(network, round_file(tmp_path, number))
    code = (
        "import sys, torch\n"
        "from pangu_modules.llm.weighting.saving import load_rounds\n"
        "rounds = load_rounds(sys.argv[1])\n"
        "ids = torch.arange(20).view(4, 5)\n"
        "print({round: model(ids).tolist() for round, model in rounds.items()})\n"
        "assert not any(value.requires_grad for model in rounds.values() for value in model.parameters())\n"
        "assert 'lightning' not in sys.modules and 'transformers' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    expected = {number: network(torch.arange(20).view(4, 5)).tolist() for number, network in networks.items()}
    assert run.stdout.strip() == str(expected), run.stderr
    assert save_weighting_model(load_rounds(tmp_path)[3], tmp_path / "again").read_bytes() == (
        round_file(tmp_path, 3).read_bytes()
    )


@pytest.mark.filterwarnings("ignore:.*is now")
def test_files_of_a_run_whose_rounds_were_called_stages_are_read(tmp_path):
    from safetensors.torch import save_file

    networks = {number: model(seed=number).float() for number in (1, 2)}
    present = {"hidden_size": "d_model", "num_heads": "n_heads", "num_layers": "n_layers", "num_mix": "n_mix"}
    for number, network in networks.items():
        stored = {present.get(name, name): value for name, value in network.config.plain().items()}
        save_file(
            network.state_dict(),
            tmp_path / f"dwm_stage{number}.safetensors",
            {"data_weighting_model": json.dumps(stored)},
        )
    newer = model(seed=3).float()
    save_weighting_model(newer, round_file(tmp_path, 2))  # resumed by newer code: its file counts
    (tmp_path / "dwm_stage1_encoder").mkdir()
    rounds, ids = load_rounds(tmp_path), torch.arange(20).view(4, 5)
    assert list(rounds) == [1, 2]
    assert torch.equal(rounds[1](ids), networks[1](ids))
    assert torch.equal(rounds[2](ids), newer(ids))
    assert find_encoder(tmp_path, 1).name == "dwm_stage1_encoder"
    encoder_folder(tmp_path, 1).mkdir()
    assert find_encoder(tmp_path, 1) == encoder_folder(tmp_path, 1)


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is no weighting model"):
        load_weighting_model(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"give a dwm_round\*.safetensors file"):
        load_weighting_model(tmp_path / "dwm_round1.safetensors")
    with pytest.raises(ValueError, match=r"holds no dwm_round\*.safetensors"):
        load_rounds(tmp_path)
