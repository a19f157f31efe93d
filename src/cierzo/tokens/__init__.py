"""Text to token ids and back, and chats to token ids."""

from cierzo.tokens.detokenize import Detokenizer, decode
from cierzo.tokens.interface import ChatError, Message, TemplateRefusalError, Tokenizer, ToolFormat
from cierzo.tokens.load import load_tokenizer

__all__ = [
    "ChatError",
    "Detokenizer",
    "Message",
    "TemplateRefusalError",
    "Tokenizer",
    "ToolFormat",
    "decode",
    "load_tokenizer",
]
