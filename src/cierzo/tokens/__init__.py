"""Text to token ids and back, and chats to token ids."""

from cierzo.tokens.detokenize import Detokenizer, decode
from cierzo.tokens.interface import ChatError, Message, Tokenizer
from cierzo.tokens.load import load_tokenizer

__all__ = ["ChatError", "Detokenizer", "Message", "Tokenizer", "decode", "load_tokenizer"]
