"""GGUF files that hold nothing but a vocabulary."""

from pathlib import Path

import gguf
from sentencepiece import SentencePieceProcessor


def write_sentencepiece_vocabulary(model: Path, target: Path) -> None:
    """A llama-type vocabulary-only GGUF of a SentencePiece model, with the keys that llama.cpp asks for."""
    library = SentencePieceProcessor(model_file=str(model))
    ids = range(library.vocab_size())

    def kind(token: int) -> gguf.TokenType:
        if library.is_byte(token):
            return gguf.TokenType.BYTE
        if library.is_unknown(token):
            return gguf.TokenType.UNKNOWN
        return gguf.TokenType.CONTROL if library.is_control(token) else gguf.TokenType.NORMAL

    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([library.id_to_piece(t) for t in ids])
    writer.add_token_scores([library.get_score(t) for t in ids])
    writer.add_token_types([kind(t) for t in ids])
    writer.add_bos_token_id(library.bos_id())
    writer.add_eos_token_id(library.eos_id())
    writer.add_unk_token_id(library.unk_id())
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
