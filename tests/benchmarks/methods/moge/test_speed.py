"""MoGE's races compare like with like."""

from benchmarks.methods.moge import speed as moge


def test_both_sides_agree_and_the_dense_side_has_as_many_operations():
    contests = [moge.training_contest(24), moge.decode_contest(2), moge.dense_contest(24)]
    for contest in contests:
        error, bound = contest.check()
        assert error <= bound, contest.name
    setting = moge.Setting(24)
    products = 2 * 24 * moge.CHOSEN * 3 * moge.HIDDEN * moge.INNER
    assert moge.operations(setting.dense_products()) == products


def test_a_wrong_gate_is_noticed():
    setting = moge.Setting(4)
    right = setting.results(setting.ours, setting.ours)
    setting.gates = (setting.gates.detach() * 1.001).requires_grad_()
    wrong = setting.results(setting.peer("eager"), setting.olmoe)
    assert max(moge.relative(a, b) for a, b in zip(right, wrong, strict=True)) > moge.BOUND


def test_the_targets_are_those_of_the_issue():
    races = {race.id: race.target for contest in moge.contests() for race in contest.races}
    assert races["step_grouped_mm"] == 1.2
    assert races["step_eager"] == 4
    assert races["forward_dense"] == 1 / 1.15
    assert {races[f"decode_{number}_{path}"] for number in (1, 16) for path in moge.DECODE_PATHS} == {1.0}
