"""Callbacks for `fit`: changes between epochs, statistics of the teachers, and resumption of a killed run.

| callback | effect |
|---|---|
| `TeacherSnapshot` | plain training, then distillation from the best weights |
| `KDWeightSchedule` | sets the weight of the distillation term for each epoch |
| `TeacherMonitor` | adds statistics of the teachers to the logs, and warns of a collapse |
| `SeedEachEpoch` | seeds every random generator for each epoch, so that a resumed run draws the same |
| `AtomicBackup` | writes a backup after each epoch that is complete or absent |

The first three need teachers, as their attribute `needs_teachers` says; the last two work with every Keras model.
Every callback can be deep-copied and pickled. They assign variables only at the beginning and the end of an epoch,
where JAX notices.
"""

from keras_ssd.callbacks.monitor import TeacherMonitor
from keras_ssd.callbacks.resume import AtomicBackup, SeedEachEpoch
from keras_ssd.callbacks.schedule import KDWeightSchedule
from keras_ssd.callbacks.snapshot import TeacherSnapshot

__all__ = ["AtomicBackup", "KDWeightSchedule", "SeedEachEpoch", "TeacherMonitor", "TeacherSnapshot"]
