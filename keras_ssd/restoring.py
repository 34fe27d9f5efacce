"""What a stored configuration of an `SSDModel` must hold, and how its parts come back: no code of the file is run."""

import keras

from keras_ssd._version import __version__


def check_config(config, class_name, known, needed):
    """Raise unless a configuration holds what this version knows and needs.

    Args:
        config: dictionary.
        class_name: of the model.
        known: names of the options that this version knows.
        needed: names of those that must be there.

    Raises:
        ValueError: it names the options, and says what to do.
    """
    unknown, missing = sorted(set(config) - known), sorted(needed - set(config))
    if unknown or missing:
        what = f"holds options unknown to keras-ssd {__version__}: {unknown}" if unknown else f"lacks {missing}"
        raise ValueError(
            f"The configuration of the {class_name} {what}. It was probably written by another version or "
            "package: `pip install --upgrade keras-ssd`, or save the plain model, `ssd.student`, where it was trained; "
            "that is read by every version."
        )


def restored(name, config, custom_objects):
    """A part of the model from its configuration. A function comes from nowhere but the user's own registry.

    Keras 3.6 would import whatever a file names.

    Args:
        name: of the option.
        config: what stands for it in the file.
        custom_objects: as given to `keras.models.load_model`.

    Raises:
        ValueError: if it names a class or function that is not known; with the remedy.
    """
    remedy = (
        "Decorate it with @keras.saving.register_keras_serializable() and import it before, or pass "
        "custom_objects to keras.models.load_model."
    )
    if isinstance(config, dict) and config.get("class_name") == "function":
        function = config["config"]
        known = keras.saving.get_registered_object(function, custom_objects=custom_objects) is not None
        # Keras 3.6 wrote the name without the package.
        if not known and not any(one.endswith(f">{function}") for one in keras.saving.get_custom_objects()):
            raise ValueError(
                f"`{name}` of the saved SSDModel is a function that is not registered: {function}. {remedy}"
            )
    try:
        return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    except TypeError as error:
        raise ValueError(
            f"`{name}` of the saved SSDModel cannot be restored, probably for a class or function of yours. {remedy} "
            f"Keras says: {error}"
        ) from error
