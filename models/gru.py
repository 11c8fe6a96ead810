"""The text classifier of the outlier-exposure paper: embedding, gated recurrent unit, linear head.

Source: Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, arXiv
1812.04606, section 4.3 and the authors' NLP_classification/train.py.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

HIDDEN = 128  # width of the GRU, and so of the features
LAYERS = 2
PADDING = 1  # the token that fills short texts; its embedding stays zero


class GRUClassifier(nn.Module):
    """Classify texts by the last hidden state of a GRU over the embeddings of their tokens.

    The GRU reads every token, and padding is a token. So texts are padded in front, as in the
    paper, or they are given as a packed sequence, which holds no padding. The keys of the state
    dict are those of pytorch-ood: embedding, gru and fc.

    Args:
        num_classes: outputs of the head.
        n_vocab: number of different tokens, padding included; above PADDING.
        embedding_dim: width of the embedding; the paper takes 50.
    """

    def __init__(self, num_classes: int, n_vocab: int, embedding_dim: int = 50):
        super().__init__()
        self.embedding = nn.Embedding(n_vocab, embedding_dim, padding_idx=PADDING)
        self.gru = nn.GRU(embedding_dim, HIDDEN, LAYERS, batch_first=True)
        self.fc = nn.Linear(HIDDEN, num_classes)

    def features(self, x: Tensor | PackedSequence) -> Tensor:
        """Return the features (N, 128) of token numbers (N, L) int64, or of a packed sequence."""
        if isinstance(x, PackedSequence):
            embedded = x._replace(data=self.embedding(x.data))
        else:
            embedded = self.embedding(x)  # (N, L, embedding_dim)
        _, states = self.gru(embedded)  # (LAYERS, N, HIDDEN)
        return states[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of token numbers (N, L) int64."""
        return self.fc(self.features(x))
