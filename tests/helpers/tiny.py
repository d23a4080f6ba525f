"""The token ids of the tiny Llama 3: the first tokens of Llama 3's vocabulary, and then its 256 control tokens.

With all 128,000 tokens most of the time of a tiny model goes into its head and into loading its tokenizer.
"""

WORDS = 8000
VOCABULARY = WORDS + 256
BEGIN_OF_TEXT = WORDS
END_OF_TURN = WORDS + 9
