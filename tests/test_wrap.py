"""The settings that `wrap` copies from a compiled model, and its refusals: argument, received value and remedy."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from keras_ssd import keras_names
from structures import Subclassed


def model(*middle, last=None):
    stack = [layers.Dense(6, name="hidden"), *middle, last or layers.Dense(3, activation="softmax", name="head")]
    return keras.Sequential([keras.Input((4,)), *stack], name="net")


def noisy():
    return model(layers.Dropout(0.5, name="drop"))


def towers(holding=None):
    """Two nested models whose layers, or nested models of the name `holding`, have equal names."""
    inputs, left, right = keras.Input((4,)), noisy(), noisy()
    if holding:
        left.name = right.name = holding
        left, right = (keras.Sequential([keras.Input((4,)), one]) for one in (left, right))
    left.name, right.name = "left", "right"
    both = layers.Add()([left(inputs), right(inputs)])
    return keras.Model(inputs, layers.Dense(3)(both), name="towers")


def ensemble():
    """The mean of two models with a head each."""
    inputs, left, right = keras.Input((4,)), noisy(), noisy()
    left.name, right.name = "left", "right"
    return keras.Model(inputs, layers.average([left(inputs), right(inputs)]), name="ensemble")


def one_dropout():
    """A predicate that chooses the first layer of the name `drop` alone."""
    chosen = []

    def choose(layer):
        if layer.name == "drop" and not chosen:
            chosen.append(layer)
        return layer in chosen

    return choose


def opaque():
    net = Subclassed("dropout")
    net(np.zeros((1, 4), "float32"))
    return net


def of(*stack, inputs=(4,), **options):
    return keras.Sequential([keras.Input(inputs, **options), *stack], name="net")


def stateful():
    stack = [layers.Dropout(0.5), layers.LSTM(3, stateful=True, name="r"), layers.Dense(2)]
    return of(*stack, inputs=(5, 2), batch_size=4)


def convolutional_head():
    return of(layers.Dropout(0.5), layers.Conv1D(3, 8), layers.Softmax(), inputs=(8, 2))


def refusal(make, message, **options):
    """What is wrapped, what the error says, and the options; models are made by functions, when the test runs."""
    return make, message, options


FEATURES = {"distill": "representation"}
UNIFORM = {**FEATURES, "similarity": "uniform"}
# Messages too long for their lines.
NOT_UNIQUE = r"`stochastic_layers` selected layers whose names are not unique.*\['drop'\]"
TOO_EARLY = "`representation` lies before the first active noise.*representation='hidden'.*'drop'"
MERGED = "`representation` is not a layer of the model 'ensemble'.*merges the outputs of several.*distill="
NAMED_TWICE = "`representation` names several layers of the model 'towers'.*representation="
REFUSALS = {
    # The noise.
    "no noise": refusal(model, "no noise layer.*so all teachers would be identical. Pass dropout_rate=0.3"),
    "all rates 0": refusal(lambda: model(layers.Dropout(0.0, name="drop")), "rate of 0.*'drop'"),
    "one draw for the whole batch": refusal(
        lambda: model(layers.Dropout(0.5, noise_shape=(1, 6), name="drop")), r"'drop'.*noise_shape=\(1, 6\)"
    ),
    "stateful after the cut": refusal(stateful, "'r' is stateful"),
    "unknown stochastic layer": refusal(
        noisy, r"`stochastic_layers`.*\['nowhere'\].*\['drop'\]", stochastic_layers=["drop", "nowhere"]
    ),
    "no noise is made": refusal(noisy, "'hidden'.*Pass `dropout_rate`", stochastic_layers="hidden"),
    "predicate chooses nothing": refusal(noisy, "False for all", stochastic_layers=lambda layer: False),
    "no noise wanted of many": refusal(noisy, "num_teachers=1", stochastic_layers=()),
    "one of several layers of a name": refusal(towers, NOT_UNIQUE, stochastic_layers=one_dropout()),
    # The teacher.
    "unknown teacher": refusal(noisy, "`teacher`.*'me'", teacher="me"),
    "missing file": refusal(noisy, "`teacher`.*does not exist.*missing.keras", teacher="missing.keras"),
    "teacher of another width": refusal(
        noisy,
        "`teacher`.*9 features.*6",
        teacher=lambda: of(layers.Dense(9), layers.Dropout(0.5), layers.Dense(3)),
        **FEATURES,
    ),
    "teacher with other outputs": refusal(
        noisy, r"`teacher`.*\(2,\).*\(3,\)", teacher=lambda: of(layers.Dropout(0.5), layers.Dense(2))
    ),
    # The model.
    "not a model": refusal(lambda: "resnet", "`model` should be a keras.Model.*'resnet'"),
    "wrapped already": refusal(lambda: keras_ssd.wrap(noisy()), "wrapped already.*student"),
    # The representation.
    "no Dense head": refusal(convolutional_head, "`representation`.*no Dense layer", **FEATURES),
    "before the noise": refusal(noisy, TOO_EARLY, representation="hidden", **UNIFORM),
    "unknown representation": refusal(
        noisy, "`representation`.*'nowhere'.*'hidden', 'drop', 'head'", representation="nowhere"
    ),
    "several layers of a name": refusal(towers, NAMED_TWICE + "'drop'", representation="drop"),
    "several nested models of a name": refusal(
        lambda: towers(holding="encoder"), NAMED_TWICE + "'encoder'", representation="encoder"
    ),
    "representation of an ensemble": refusal(noisy, MERGED, teacher=ensemble, **UNIFORM),
    "representation of a subclassed model": refusal(opaque, "no graph of layers", representation="hidden"),
    "distilled in a subclassed model": refusal(opaque, "no graph of layers.*outputs", **FEATURES),
}


@pytest.mark.parametrize("make, message, options", REFUSALS.values(), ids=REFUSALS)
def test_wrap_rejects_bad_arguments(make, message, options):
    if callable(options.get("teacher")):
        options = {**options, "teacher": options["teacher"]()}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        keras_ssd.wrap(make(), **options)


@pytest.mark.parametrize("keys", [None, ("zz", "bb")], ids=["by name", "by keys that are no layer's name"])
def test_losses_and_weights_by_the_name_or_the_key_of_an_output(keys):
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5)(layers.Dense(6)(inputs))
    outputs = [layers.Dense(3, name="aa")(x), layers.Dense(1, name="yy")(x)]
    ssd = keras_ssd.wrap(keras.Model(inputs, dict(zip(keys, outputs, strict=True)) if keys else outputs))
    first, second = keys or ("aa", "yy")
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ssd.compile("sgd", {first: cross_entropy, second: "mse"}, loss_weights={first: 1.0, second: 0.25})
    found = {(d.kind, d.from_logits, d.weight) for d in ssd.distillation.output_records.describe()}
    assert found == {("regression", False, 0.25), ("categorical", True, 1.0)}
    y = {first: np.zeros(4), second: np.zeros((4, 1))}
    logs = ssd.train_on_batch(np.ones((4, 4), "float32"), y if keys else [*y.values()], return_dict=True)
    assert {f"{first}_loss", f"{second}_loss", "kd_loss"} <= set(logs)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # Keras says so for the plain model, too
def test_sample_weights_may_be_given_for_some_outputs():
    """An output without a loss is not distilled."""

    def three_heads():
        inputs = keras.Input((4,))
        return keras.Model(inputs, {name: layers.Dense(2, name=name)(inputs) for name in "abc"})

    net, teacher = three_heads(), three_heads()
    net.compile("sgd", {"a": "mse", "c": "mse"})
    ssd = keras_ssd.wrap(net, teacher, stochastic_layers=(), num_teachers=1, similarity="uniform", kd_weight=1.0)
    x, targets = np.random.default_rng(0).normal(size=(3, 4)).astype("float32"), np.zeros((3, 2), "float32")
    weights = {"a": np.array([0.0, 1.0, 3.0], "float32"), "c": np.array([2.0, 0.5, 0.0], "float32")}
    student, teacher = net.predict(x, verbose=0), teacher.predict(x, verbose=0)
    expected = sum(np.mean(weights[k] * np.square(student[k] - teacher[k]).mean(axis=-1)) for k in "ac")
    logs = ssd.train_on_batch(x, {"a": targets, "c": targets}, sample_weight=weights, return_dict=True)
    assert logs["kd_loss"] == pytest.approx(expected, rel=1e-5)


def test_seed_generators_in_a_list_are_found():
    class Noise(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.generators = [keras.random.SeedGenerator(1)]

        def call(self, x, training=False):
            return keras.random.dropout(x, 0.5, seed=self.generators[0]) if training else x

    ssd = keras_ssd.wrap(model(Noise(name="noise"), layers.Dropout(0.1)), distill="representation", similarity="cosine")
    ssd.compile("sgd", "mse")
    assert ssd.distillation.wiring.noise.names[0] == "noise"
    assert np.ptp(ssd.teacher_representations(np.ones((2, 4), "float32"))[1], axis=1).max() > 0


def test_the_weight_of_the_term_can_be_set():
    ssd = keras_ssd.wrap(noisy(), teacher="snapshot", kd_weight=1.0)
    ssd.kd_weight = 0.25
    assert ssd.kd_weight == 0.25
    with pytest.raises(ValueError, match="`kd_weight`.*-1"):
        ssd.kd_weight = -1
    with pytest.raises(ValueError, match="without teachers"):
        keras_ssd.wrap(noisy(), kd_weight=0).kd_weight = 1.0


def test_methods_of_other_kinds_of_teachers_raise():
    with pytest.raises(ValueError, match="teacher=\"snapshot\".*'self'"):
        keras_ssd.wrap(noisy()).take_snapshot()
    with pytest.raises(ValueError, match="`ema_momentum` above 0.*teacher='self'"):
        keras_ssd.wrap(noisy(), ema_momentum=0).write_average()


@pytest.mark.once
@pytest.mark.slow
def test_import_is_light():
    """Only what the library needs; the rest is imported by those who use it."""
    code = (
        "import keras, sys; before = set(sys.modules); import keras_ssd; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    added = eval(output.strip().splitlines()[-1])
    assert not set(added) & {"matplotlib", "tensorflow_datasets", "keras_tuner", "aeon", "sklearn", "pandas", "scipy"}


def test_without_a_backend_the_import_names_the_extra(tmp_path):
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('tensorflow', 'jax', 'torch'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import keras_ssd\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert "keras-ssd[jax]" in result.stderr and "KERAS_BACKEND" in result.stderr


def test_classes_on_another_axis_than_the_last_are_refused_where_they_are_distilled():
    stack = [keras.Input((3, 6)), layers.Dropout(0.5), layers.Dense(2), layers.Softmax(axis=1)]
    ssd, plain = keras_ssd.wrap(keras.Sequential(stack)), keras_ssd.wrap(keras.Sequential(stack), kd_weight=0)
    with pytest.raises(ValueError, match="axis=1, .*shape.*Permute"):
        ssd.compile("sgd", keras.losses.CategoricalCrossentropy(axis=1))
    ssd.compile("sgd", keras.losses.CategoricalCrossentropy(axis=2))
    plain.compile("sgd", keras.losses.CategoricalCrossentropy(axis=1))


def test_consecutive_wrappers_have_different_reproducible_seeds():
    net = noisy()

    def seeds():
        keras.utils.set_random_seed(5)
        generators = [keras_ssd.wrap(net).distillation.seed_generator for _ in range(3)]
        return [keras.ops.convert_to_numpy(generator.state.value).tolist() for generator in generators]

    made = seeds()
    assert seeds() == made
    is_noticed = keras_names.seeding_number() is not None  # Keras 3.8 does not store the seed
    assert len({str(seed) for seed in made}) == (3 if is_noticed else 1)
    # Of the first one, as in every version: `random.seed(5); random.randint(1, 10**9)`.
    assert made[0][0] == 668835602 ^ 0x55D


def test_a_frozen_representation_is_told():
    """Its distance has no gradient, so the term would change nothing, and the logs would not show it."""
    frozen = noisy()
    frozen.get_layer("hidden").trainable = False
    with pytest.warns(UserWarning, match="no trainable weight of 'net' lies before the representation"):
        keras_ssd.wrap(frozen, **keras_ssd.PAPER)
    keras_ssd.wrap(frozen, teacher="snapshot", distill="both")
    keras_ssd.wrap(frozen, dropout_rate=0.3)
    keras_ssd.wrap(noisy(), **keras_ssd.PAPER)
