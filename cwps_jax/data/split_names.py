"""Names that other data sets use for splits, and the config's keys for them."""

KEYS = {
    "validation_split": ("validation", "valid", "val", "dev", "development"),
    "test_split": ("test", "testing", "eval", "evaluation"),
    "train_split": ("train", "training"),
}


def key_of(split: str) -> str:
    """Returns the setting by which a run uses a split, such as "config.validation_split=dev"."""
    for key, names in KEYS.items():
        if split.casefold() in names:
            return f"config.{key}={split}"
    return f"config.train_split=train+{split} or config.validation_split={split}"
