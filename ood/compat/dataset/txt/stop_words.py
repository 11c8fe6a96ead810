"""English words without a topic, as a list. `ood.data.stop_words` says where they come from."""

from ood.data.stop_words import STOP_WORDS

stop_words = sorted(STOP_WORDS)
