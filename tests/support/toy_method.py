"""A method without any training, and results that its arms might have, for the tests of the harness."""

from functools import partial

import toy_arms

from benchmarks.harness.arms import Arm, Claim, Method
from benchmarks.harness.quantities import Gain, Metric, Ratio
from benchmarks.harness.verdicts import AlwaysEqual, EverySeedAbove, MeanAbove

NOISE = toy_arms.NOISE
ACCURACY = Metric("accuracy", "accuracy", "%", scale=100, digits=1, difference_unit="points")
LOSS = Metric("loss", "loss", "nats", higher_is_better=False, log_axis=True)
SIZE = Metric("size", "parameters", digits=0)


def method(**changes):
    arms = (
        Arm("base", "the base", toy_arms.base_arm, config={"width": 64}),
        Arm("better", "the method | better", partial(toy_arms.better_arm, 0.02), config={"rank": 8}, needs=("base",)),
        Arm("extra", "only reported", toy_arms.base_arm, seeds=1),
    )
    claims = (
        Claim("accuracy", "Better by a point", Gain(ACCURACY, "better", "base"), MeanAbove(1.0), "+7.42 points"),
        Claim("loss", "Lower loss", Gain(LOSS, "better", "base"), EverySeedAbove(0.0)),
        Claim("size", "Seven more", Gain(SIZE, "better", "base"), AlwaysEqual(7)),
        Claim("time", "Time over the base", Ratio(SIZE, "better", "base")),
        Claim("extra", "Extra arm", Gain(ACCURACY, "extra", "base")),
    )
    values = {
        "name": "toy",
        "title": "Toy",
        "source": "nowhere",
        "setup": "Two numbers.",
        "arms": arms,
        "claims": claims,
        "metrics": (ACCURACY, LOSS),
        "figure": (ACCURACY, LOSS),
        "seeds": 3,
    }
    return Method(**{**values, **changes})


def results(seeds=3):
    by_seed = {}
    for seed in range(seeds):
        times = {"seconds": 2.0, "cpu_seconds": 1.0}
        by_seed[seed] = {
            "base": {"accuracy": 0.9 + NOISE[seed], "loss": 0.3, "size": 100, **times},
            "better": {"accuracy": 0.92 + 0.5 * NOISE[seed], "loss": 0.2 + NOISE[seed], "size": 107, **times},
        }
    by_seed[0]["extra"] = by_seed[0]["base"]
    return by_seed
