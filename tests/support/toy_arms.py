"""Arms without any training, for the tests of the harness; a module of its own so that worker processes find it."""

import os

NOISE = (0.004, -0.002, 0.001, 0.003)


def base_arm(seed, inputs, folder):
    (folder / "weights.txt").write_text(str(seed))
    print("training")
    threads = int(os.environ["OMP_NUM_THREADS"])
    return {"accuracy": 0.9 + NOISE[seed], "loss": 0.3, "size": 100, "threads": threads}


def better_arm(gain, seed, inputs, folder):
    loaded = int((inputs["base"].folder / "weights.txt").read_text())
    return {"accuracy": inputs["base"].values["accuracy"] + gain, "loss": 0.2, "size": 107 + loaded - seed}


def failing_arm(seed, inputs, folder):
    if seed == 1:
        raise RuntimeError("out of luck")
    return {"accuracy": 0.5, "loss": 1.0, "size": 1}
