"""Callbacks for `fit`: what changes between epochs, what the teachers do, and how a killed run goes on.

| callback | what it does |
|---|---|
| `TeacherSnapshot` | plain training, then distillation from the best weights |
| `KDWeightSchedule` | sets the weight of the distillation term for each epoch |
| `TeacherMonitor` | shows in the logs what the teachers do, and warns of a collapse |
| `SeedEachEpoch` | seeds every random generator for each epoch, so that a resumed run draws the same |
| `AtomicBackup` | writes a backup after each epoch that is whole or absent |

The first three need teachers and say so by the attribute `needs_teachers`; the last two work with every Keras model.
Every callback can be deep-copied and pickled. All of them write into variables only where JAX sees it, at the beginning
and the end of an epoch.
"""

from keras_ssd.callbacks.monitor import TeacherMonitor
from keras_ssd.callbacks.resume import AtomicBackup, SeedEachEpoch
from keras_ssd.callbacks.schedule import KDWeightSchedule
from keras_ssd.callbacks.snapshot import TeacherSnapshot

__all__ = ["AtomicBackup", "KDWeightSchedule", "SeedEachEpoch", "TeacherMonitor", "TeacherSnapshot"]
