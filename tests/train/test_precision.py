"""fp16: the loss's scale, what it skips, and runs that go on."""

import dataclasses

import pytest
import torch
from runs import at_step_two, power_cut, rows

from splip.errors import UserError
from splip.models.checkpoint import read_checkpoint
from splip.train import loop, precision
from splip.train.precision import Scaler

CPU = torch.device("cpu")


def one(value=1.0):
    weight = torch.nn.Parameter(torch.tensor([value]))
    return weight, torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=True)


def test_gradients_are_unscaled_before_they_are_limited():
    scaler, (weight, optimiser) = Scaler("fp16", CPU), one()
    scaler.scale(3 * weight.sum()).backward()
    assert weight.grad.item() == 3 * 65536
    scaler.unscale(optimiser)
    assert weight.grad.item() == 3
    assert scaler.step(optimiser) is None and weight.item() == pytest.approx(0.9)


def test_an_overflow_skips_the_step_and_halves_the_scale():
    scaler, (weight, optimiser) = Scaler("fp16", CPU), one()
    scaler.scale(float("inf") * weight.sum()).backward()
    said = scaler.step(optimiser)
    assert said is not None and "scaled by 32768" in said
    assert weight.item() == 1 and scaler.state() == {"scaler": {"scale": 32768.0, "growth_tracker": 0}}


def test_gradients_that_overflow_at_any_scale_end_the_run():
    scaler, (weight, optimiser) = Scaler("fp16", CPU), one()
    with pytest.raises(UserError, match="gradients overflow even with the loss scaled by"):
        for _ in range(40):
            optimiser.zero_grad()
            scaler.scale(float("inf") * weight.sum()).backward()
            scaler.step(optimiser)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_others_are_as_they_were(name):
    scaler, (weight, optimiser) = Scaler(name, CPU), one()
    loss = weight.sum()
    assert scaler.scale(loss) is loss and scaler.state() == {}
    scaler.scale(loss).backward()
    scaler.unscale(optimiser)
    assert weight.grad.item() == 1 and scaler.step(optimiser) is None and weight.item() == pytest.approx(0.9)
    scaler.restore({})  # an old checkpoint


def test_autocast():
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with precision.autocast(CPU, name):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("float16", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_run_in_fp16_goes_on_bit_for_bit(settings, tmp_path, monkeypatch, capsys, float16):
    if not float16:  # which a CPU computes a hundred times more slowly
        monkeypatch.setitem(precision.DTYPES, "fp16", torch.bfloat16)
    high = 2.0**24 if float16 else 2.0**127  # overflows at first
    settings = dataclasses.replace(settings, precision="fp16", clip_gradient=1.0, eval_prompts=False)
    make = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: make(*a, init_scale=high, growth_interval=1, **k))
    loop.train(settings)
    whole = read_checkpoint(settings.out / "last.safetensors")
    again = dataclasses.replace(settings, out=tmp_path / "again")
    with at_step_two(monkeypatch, power_cut), pytest.raises(RuntimeError, match="power cut"):
        loop.train(again)
    stopped = read_checkpoint(again.out / "last.safetensors")["scaler"]
    loop.train(dataclasses.replace(again, resume=True))
    end = read_checkpoint(again.out / "last.safetensors")
    assert whole["scaler"] == end["scaler"] and stopped["scale"] != high
    for name, value in whole["trainable"].items():
        assert torch.equal(value, end["trainable"][name]), name
    assert [r["loss"] for r in rows(again.out)] == [r["loss"] for r in rows(settings.out)]
    assert "skipped, a gradient overflowed in float16" in capsys.readouterr().out


def test_a_damaged_scale_is_said(settings, monkeypatch):
    monkeypatch.setitem(precision.DTYPES, "fp16", torch.bfloat16)
    settings = dataclasses.replace(settings, precision="fp16", steps=2, eval_prompts=False)
    loop.train(settings)
    from splip.models.checkpoint import write_checkpoint

    last = settings.out / "last.safetensors"
    state = read_checkpoint(last)
    write_checkpoint({**state, "scaler": {"scale": -1.0, "growth_tracker": 0}}, last)
    with pytest.raises(UserError, match="not the end of a run, or damaged"):
        loop.train(dataclasses.replace(settings, resume=True))


def test_torch_without_a_scaler(monkeypatch):
    monkeypatch.delattr(torch.amp, "GradScaler")
    with pytest.raises(UserError, match="precision fp16 needs a newer torch"):
        Scaler("fp16", CPU)
    assert Scaler("fp32", CPU).state() == {}
