"""The doctor names what there is and, for what is wrong, a command; 0 or 2 says whether training can start."""

from __future__ import annotations

import pytest
from npu_ranks import with_npus

from pangu_modules.ascend import doctor


def machine(root, *, driver=True, cann="ascend-toolkit/latest"):
    ascend = root / "usr/local/Ascend"
    if driver:
        (ascend / "driver").mkdir(parents=True)
        (ascend / "driver" / "version.info").write_text("Version=25.2.0\nascendhal_version=7.35.23\n")
    if cann:
        (ascend / cann / "aarch64-linux").mkdir(parents=True)
        (ascend / cann / "aarch64-linux" / "ascend_toolkit_install.info").write_text(
            "package=toolkit\nversion=8.3.RC1\n"
        )
        (ascend / cann / "set_env.sh").touch()
    return root


@pytest.fixture(autouse=True)
def _no_cann_in_the_environment(monkeypatch):
    for name in (*doctor.CANN_VARIABLES, "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_an_empty_machine_lacks_driver_cann_and_torch_npu_in_this_order(tmp_path):
    found, problems = doctor.examine(tmp_path)
    assert (found["CANN"], found["driver"], found["devices"]) == ("none", "none", "none")
    assert [problem.what.split()[0] for problem in problems] == ["there", "CANN's", "torch_npu"]
    assert all(problem.remedy for problem in problems)


@pytest.mark.parametrize("cann", ["cann", "ascend-toolkit/latest"])
def test_versions_come_from_the_vendors_files_and_the_script_to_source_is_the_one_there(tmp_path, cann):
    found, problems = doctor.examine(machine(tmp_path, cann=cann))
    assert found["driver"] == "25.2.0"
    assert found["CANN"] == f"8.3.RC1 in {tmp_path}/usr/local/Ascend/{cann}"
    assert next(problem.remedy for problem in problems) == f"source {tmp_path}/usr/local/Ascend/{cann}/set_env.sh"


def test_cann_in_use_is_named_before_cann_installed(tmp_path, monkeypatch):
    other = machine(tmp_path / "other", cann="cann") / "usr/local/Ascend/cann"
    monkeypatch.setenv("ASCEND_HOME_PATH", str(other))
    found, problems = doctor.examine(machine(tmp_path / "here"))
    assert found["CANN"] == f"8.3.RC1 in {other}"
    assert [problem.what for problem in problems] == ["torch_npu is not installed"]


def healthy(root):
    import os

    os.environ["ASCEND_HOME_PATH"] = str(root / "usr/local/Ascend/cann")
    found, problems = doctor.examine(root)
    return found["devices"], found["hccl"], [str(problem) for problem in problems]


def test_with_two_npus_nothing_is_wrong(tmp_path):
    devices, hccl, problems = with_npus(healthy, tmp_path / "run", machine(tmp_path / "root", cann="cann"))
    assert (devices, hccl, problems) == ("2 x Fake910", "registered with torch.distributed", [])


def seeing_none():
    import fake_npu

    from pangu_modules.ascend import availability

    fake_npu.install(0)
    return str(availability.problem())


def test_a_torch_npu_that_sees_no_device_says_where_to_look(tmp_path):
    said = with_npus(seeing_none, tmp_path / "run", npus=0)
    assert said.startswith("torch_npu is loaded and finds no device: see that npu-smi info lists one")


def test_the_command_exits_with_2_and_prints_a_remedy_for_each_problem(capsys):
    assert doctor.main() == 2
    printed = capsys.readouterr().out
    assert printed.count("wrong: ") == printed.count(" mend: ") >= 1
    assert len(printed.splitlines()) < 25
