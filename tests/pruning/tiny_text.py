"""A tiny tokenizer, a tiny model, a text that they know."""

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(60)]


def tiny_text(words, seed=0):
    """A text of so many words; they follow each other by a simple law."""
    draw, number, text = random.Random(seed), 0, []
    for _ in range(words):
        number = (number + draw.choice([1, 1, 1, 7])) % len(WORDS)
        text.append(WORDS[number])
    return " ".join(text)


def word_tokenizer(*, beginning=False, words=WORDS):
    """Ids 0, 1, 2: unknown, beginning, end; then a word each. A beginning is put before a text if asked."""
    names = ["<unk>", "<s>", "</s>", *words]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if beginning:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_tokenizer():
    """A token for every byte."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def tiny_llama(vocabulary=63, *, seed=0, **options):
    """Two blocks of width 16."""
    torch.manual_seed(seed)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**{"vocab_size": vocabulary, "max_position_embeddings": 32, **small, **options})
    return LlamaForCausalLM(config).eval()


def save_tiny(folder, *, tokenizer=None, **options):
    """A folder with a model and its tokenizer; the model."""
    model = tiny_llama(**options)
    model.save_pretrained(folder)
    (word_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return model
