"""Two small sets, one labelled and one not, and what they are joined to."""

import numpy as np

import keras_ssd

# Every sample knows its number, so that it is known again: labelled ones are positive, unlabelled ones negative.
X = np.arange(1, 11, dtype="float32").reshape(10, 1)
Y = np.arange(10)
U = -np.arange(1, 25, dtype="float32").reshape(24, 1)


def joined(labelled=(X, Y), unlabelled=U, **options):
    return keras_ssd.join_unlabelled(labelled, unlabelled, **{"batch_size": 4, "ratio": 2, "seed": 0, **options})


def epoch(data):
    batches = [data[index] for index in range(len(data))]
    data.on_epoch_end()
    return batches


def unlabelled_rows(batches):
    rows = np.concatenate([batch[0][:, 0] for batch in batches])
    return rows[rows < 0]
