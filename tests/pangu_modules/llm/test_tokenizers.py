"""Tokenizers as the text of checkpoints, and as exported folders give them back."""

import json

import pytest
from tiny_llm import byte_tokenizer, tiny_module, word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pangu_modules import CausalLM, load_tokenizer
from pangu_modules.llm.tokenizers import (
    BINARY,
    PROBES,
    difference,
    file_content,
    tokenizer_files,
    tokenizer_from_files,
)

CODE = """
import os, shutil
from transformers import PythonBackend
class Characters(PythonBackend):
    vocab_files_names = {"vocab_file": "tokenizer.model"}
    def __init__(self, vocab_file, **kw):
        self.vocab_file = vocab_file
        super().__init__(**kw)
    @property
    def vocab_size(self): return 120
    def get_vocab(self): return {chr(i): i for i in range(120)}
    def _tokenize(self, text, **kw): return list(text)
    def _convert_token_to_id(self, t): return ord(t) % 120
    def _convert_id_to_token(self, i): return chr(i)
    def save_vocabulary(self, save_directory, filename_prefix=None):
        out = os.path.join(save_directory, "tokenizer.model")
        if os.path.abspath(out) != os.path.abspath(self.vocab_file): shutil.copyfile(self.vocab_file, out)
        return (out,)
"""


def own_tokenizer(size):
    """Return a byte-level BPE whose splitting is not Qwen's."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(list(PROBES) * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


def sizes(vocabulary):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"vocab_size": vocabulary, "num_key_value_heads": 1, **small}


@pytest.mark.parametrize("architecture", ["qwen2", "phi3", "llama"])
@pytest.mark.parametrize("spare", [0, 40])
def test_an_exported_folder_gives_the_tokenizer_back(tmp_path, architecture, spare):
    tokenizer = own_tokenizer(400)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    special = {"pad_token_id": 0} if architecture == "phi3" else {}
    fields = {"model_args": {**sizes(len(tokenizer) + spare), **special}, "tokenizer": str(tmp_path / "tokenizer")}
    CausalLM.Config(architecture=architecture, **fields).build().export(tmp_path / "model")
    for read in (
        load_tokenizer(str(tmp_path / "model")),
        AutoTokenizer.from_pretrained(tmp_path / "model"),
        AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=True),
        CausalLM.Config(model=str(tmp_path / "model")).build().tokenizer,
    ):
        assert len(read) == len(tokenizer)
        assert [read(text)["input_ids"] for text in PROBES] == [tokenizer(text)["input_ids"] for text in PROBES]


def test_a_folder_that_declares_the_file_as_it_is_is_read_so(tmp_path):
    tokenizer = own_tokenizer(400)
    tiny_module().model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "qwen2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(tmp_path)
    assert difference(tokenizer, load_tokenizer(str(tmp_path)), with_special_tokens=True) is None


def test_a_binary_vocabulary_goes_through_a_checkpoint(tmp_path):
    folder = tmp_path / "m"
    tiny_module().model.save_pretrained(folder)
    (folder / "tokenization_own.py").write_text(CODE)
    (folder / "tokenizer.model").write_bytes(bytes(range(256)))
    auto = {"auto_map": {"AutoTokenizer": ["tokenization_own.Characters", None]}, "eos_token": "\0"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Characters", **auto}))
    module = CausalLM.Config(model=str(folder), trust_remote_code=True).build()
    assert module.tokenizer("ab")["input_ids"] == [97, 98]
    stored = module.runtime["files"]["tokenizer.model"]
    assert stored.startswith(BINARY)
    assert file_content(stored) == bytes(range(256))
    module.export(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == bytes(range(256))


def test_several_chat_templates_go_through_a_checkpoint(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(word_tokenizer(tmp_path))
    tokenizer.chat_template = {"default": "{{ messages[0]['content'] }}", "tool_use": "tools"}
    again = tokenizer_from_files(tokenizer_files(tokenizer))
    assert again.chat_template == tokenizer.chat_template


def test_tokenizers_differ_by_tokens_cuts_and_ends(tmp_path):
    words, letters = (load_tokenizer(str(make(tmp_path / make.__name__))) for make in (word_tokenizer, byte_tokenizer))
    assert difference(words, words) is None
    assert "token 2 is '<unk>' in the one" in difference(words, letters)
    longer = AutoTokenizer.from_pretrained(tmp_path / "word_tokenizer")
    longer.add_tokens(["more"])
    assert difference(words, longer) is None  # behind all others
    cut = AutoTokenizer.from_pretrained(tmp_path / "byte_tokenizer")
    cut.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert "differently: its token 0" in difference(letters, cut)
    ends = AutoTokenizer.from_pretrained(tmp_path / "byte_tokenizer", eos_token="<s>")
    assert difference(letters, ends) is None
    assert "a text ends with token 1 in the one and 0" in difference(letters, ends, with_special_tokens=True)
