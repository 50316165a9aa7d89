"""The report of the first person with hardware: written here on the fake NPU, and by `-m npu` on a real one."""

from __future__ import annotations

import json

import pytest
from npu_ranks import with_npus

from pangu_modules.ascend import hardware_report
from pangu_modules.ascend.__main__ import main


def test_without_an_npu_nothing_is_written(tmp_path, capsys):
    assert main(["report", "--output", str(tmp_path / "report.json")]) == 2
    assert "there is no NPU to report on: torch_npu is not installed" in capsys.readouterr().err
    assert not (tmp_path / "report.json").exists()


def fits(folder):
    from pangu_modules.ascend.hardware_fit import fit

    on_npu = fit(folder, accelerator="npu", devices=1, strategy="single_npu")
    on_cpu = fit(folder, accelerator="cpu", devices=1)
    mixed = fit(folder, accelerator="npu", devices=1, strategy="single_npu", precision="16-mixed")
    return on_npu, on_cpu, mixed


def test_its_training_learns_and_is_the_cpus_where_arithmetic_is(tmp_path):
    on_npu, on_cpu, mixed = with_npus(fits, tmp_path / "run", tmp_path)
    assert (on_npu.pop("device"), on_cpu.pop("device"), mixed["device"]) == ("npu:0", "cpu", "npu:0")
    assert on_npu == on_cpu
    assert on_npu["last_loss"] < 0.9 * on_npu["first_loss"]  # measured: 0.6
    assert mixed["finite"]


def written(path):
    hardware_report.FITS.clear()  # they start processes, which have no fake NPU
    hardware_report.FITS["of an option that is not there"] = {"nothing": "1"}
    from pangu_modules.ascend import hardware_operators

    small = hardware_operators.Sizes(1, 32, 4, 2, 64, 50, 16, 2, 1)
    measure = hardware_operators.tokens_per_second
    hardware_operators.tokens_per_second = lambda: measure(small)
    hardware_operators.REPEATS = 1
    return [hardware_report.main(path), hardware_report.main(path)]


def test_a_part_that_fails_is_written_down_and_a_report_is_never_overwritten(tmp_path):
    pytest.importorskip("pangu_modules.ascend.ops.table")
    assert with_npus(written, tmp_path / "run", tmp_path / "npu_report.json") == [0, 2]
    report = json.loads((tmp_path / "npu_report.json").read_text())
    assert "unrecognized arguments: --nothing 1" in report["fits"]["of an option that is not there"]["error"]
    assert report["machine"]["devices"] == "2 x Fake910"
    rows = report["operators"]
    assert not [row for row in rows if "error" in row]
    # References on both sides; for devices that torch does not know it computes some (SiLU) by other formulas, so that
    # numbers differ by roundings of bfloat16.
    errors = [(row["operator"], error) for row in rows for error in row["errors"]]
    assert not [each for each in errors if each[1]["largest_error"] > 2**-7 * max(1, each[1]["largest_value"])]
    assert report["tokens_per_second"]["ratio"] > 0


@pytest.mark.npu
def test_the_whole_report_on_hardware(tmp_path):
    assert main(["report", "--output", str(tmp_path / "npu_report.json")]) == 0
    report = json.loads((tmp_path / "npu_report.json").read_text())
    print(json.dumps(report, indent=2))
    assert not [name for name, part in report["fits"].items() if "error" in part]
    assert not [row for row in report["operators"] if "error" in row]
    cpu, npu = report["fits"]["cpu"], report["fits"]["float32"]
    # Float32 arithmetic in another order over 20 steps; to be tightened with the first report.
    assert npu["last_loss"] == pytest.approx(cpu["last_loss"], rel=1e-3)
    assert npu["weights_norm"] == pytest.approx(cpu["weights_norm"], rel=1e-4)
