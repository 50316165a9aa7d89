"""Weighting models of one run that weigh another model's data."""

from __future__ import annotations

import shutil

import pytest
import torch
from dwm_runs import Clones, MixedData, Seen, dwm, fit, same
from pydantic import ValidationError
from quiet_trainer import StopAt
from tiny_llm import tiny_module

from pangu_modules.common.errors import UsageError
from pangu_modules.llm.weighting.features import loss_profile
from pangu_modules.llm.weighting.saving import load_weighting_model


def test_frozen_rounds_weigh_a_wider_model(tmp_path):
    first = dwm(dwm_lr=0.05)
    fit(tmp_path / "first", first)
    callback, seen = dwm(frozen=str(tmp_path / "first")), Seen()
    wider = tiny_module(model_args={"hidden_size": 64})
    fit(tmp_path / "second", callback, module=wider, extra=[seen])
    assert callback.learner is None
    assert not list((tmp_path / "second").glob("*.safetensors"))
    batches, model = MixedData.Config().build(), load_weighting_model(tmp_path / "first" / "dwm_round1.safetensors")
    batches.setup()
    batch = list(batches.train_dataloader())[4]
    torch.testing.assert_close(seen.weights[4], 4 * model.weights(model(batch["input_ids"])).detach())
    assert seen.weights[2] is None
    # and resumes in the middle of a round
    folder, resumed = tmp_path / "third", tiny_module(seed=1, model_args={"hidden_size": 64})
    with pytest.raises(ZeroDivisionError):
        fit(
            folder,
            dwm(frozen=str(tmp_path / "first")),
            module=tiny_module(model_args={"hidden_size": 64}),
            extra=[StopAt(5, folder / "last.ckpt")],
        )
    fit(folder, dwm(frozen=str(tmp_path / "first")), module=resumed, ckpt=folder / "last.ckpt")
    same(resumed, wider)
    with pytest.raises(ValueError, match="had frozen weighting models; resume it with the same `frozen`"):
        fit(folder, dwm(), module=wider, ckpt=folder / "last.ckpt")


def test_losses_of_the_wider_model_itself_are_what_a_frozen_one_reads(tmp_path):
    fit(tmp_path / "first", dwm(dwm_lr=0.05, model={"encoder": "losses"}))
    seen, clones = Seen(), Clones()
    callback = dwm(frozen=str(tmp_path / "first"))
    fit(tmp_path / "second", callback, module=tiny_module(model_args={"hidden_size": 64}), extra=[clones, seen])
    data, model = MixedData.Config().build(), load_weighting_model(tmp_path / "first" / "dwm_round1.safetensors")
    data.setup()
    for index, batch in list(enumerate(data.train_dataloader()))[3:6]:
        with torch.no_grad():
            logits = clones.models[index](input_ids=batch["input_ids"]).logits
            expected = model.weights(model(features=loss_profile(logits, batch["input_ids"])))
        torch.testing.assert_close(seen.weights[index], 4 * expected)
    assert (seen.weights[4] - 1).abs().max() > 1e-3


@pytest.mark.parametrize("schedule", [{"lm_in_phase_a": "real"}, {"lm_in_phase_a": "virtual"}, {"mode": "online"}])
def test_a_kept_encoder_weighs_a_wider_model(tmp_path, schedule):
    clones = Clones()
    options = {"keep_encoder": True, "dwm_lr": 0.05, "model": {"encoder": "lm"}, "dwm_every": 1, **schedule}
    fit(tmp_path / "first", dwm(**options), extra=[clones])
    callback, seen = dwm(frozen=str(tmp_path / "first")), Seen()
    fit(tmp_path / "second", callback, module=tiny_module(model_args={"hidden_size": 64}), extra=[seen])
    # Batches 3 to 5 are round 1. Its last update reads the model before batch 4 where both train (batches 3 and 4 have
    # an update each), before batch 3 where the model waits; online the model is kept when the round ends.
    kept = {"real": clones.models[4], "virtual": clones.models[3]}.get(schedule.get("lm_in_phase_a"), clones.models[6])
    data, model = MixedData.Config().build(), load_weighting_model(tmp_path / "first" / "dwm_round1.safetensors")
    data.setup()
    for index, batch in list(enumerate(data.train_dataloader()))[3:6]:
        with torch.no_grad():
            hidden = kept.get_decoder()(input_ids=batch["input_ids"]).last_hidden_state.mean(1)
            torch.testing.assert_close(seen.weights[index], 4 * model.weights(model(features=hidden)))
    assert (seen.weights[4] - 1).abs().max() > 1e-3
    shutil.rmtree(tmp_path / "first" / "dwm_round1_encoder")
    with pytest.raises(ValueError, match="lacks dwm_round1_encoder: its run did not finish"):
        fit(tmp_path / "third", dwm(frozen=str(tmp_path / "first")))
    shutil.rmtree(tmp_path / "first" / "dwm_round2_encoder")
    with pytest.raises(UsageError, match="keep_encoder=true in the run that learns"):
        fit(
            tmp_path / "third",
            dwm(frozen=str(tmp_path / "first")),
            module=tiny_module(model_args={"hidden_size": 64}),
        )


def test_only_the_encoder_that_reads_the_model_keeps_it():
    with pytest.raises(ValidationError, match=r"keep_encoder=True .* method.model.encoder='tiny'"):
        dwm(keep_encoder=True)
