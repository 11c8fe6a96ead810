"""English words that say nothing about a topic, in groups of the grammar.

The words are those of the English list in NLTK's stop-word corpus (Porter et al., 2,400 stop words
for 11 languages), in its state of 2017 with 153 words. Hendrycks & Gimpel ("A Baseline for
Detecting Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR 2017, arXiv
1610.02136) remove them from 20 Newsgroups and Reuters. Their texts hold no apostrophes, so what
stands before and after one ("don", "t") is a word of its own.
"""

from __future__ import annotations

PRONOUNS = (
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself "
    "she her hers herself it its itself they them their theirs themselves"
)
QUESTIONS = "what which who whom when where why how"
POINTERS = "this that these those here there"
ARTICLES = "a an the"
VERBS = "am is are was were be been being have has had having do does did doing can will should"
CONJUNCTIONS = "and but if or because as until while than"
PREPOSITIONS = (
    "of at by for with about against between into through during before after above below to from "
    "up down in out on off over under"
)
AMOUNTS = "all any both each few more most other some such no nor not only own same so too very"
TIMES = "again further then once just now"
ENDINGS = "s t d ll m o re ve y"  # of it's, can't, he'd, I'll, I'm, o'clock, they're, we've, y'all
DENIED = "ai are could did does do had has have is might must need sha should was were wo would"

STOP_WORDS = frozenset(
    " ".join(
        (
            *(PRONOUNS, QUESTIONS, POINTERS, ARTICLES, VERBS, CONJUNCTIONS, PREPOSITIONS),
            *(AMOUNTS, TIMES, ENDINGS),
            "ma",  # of ma'am
        )
    ).split()
) | {f"{verb}n" for verb in DENIED.split()}  # aren, couldn, ... of aren't and couldn't
