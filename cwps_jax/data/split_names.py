"""What splits are called elsewhere, and the config's key that names them."""

KEYS = {
    "validation_split": ("validation", "valid", "val", "dev", "development"),
    "test_split": ("test", "testing", "eval", "evaluation"),
    "train_split": ("train", "training"),
}


def key_of(split: str) -> str:
    """Returns how a run is told to use a split, such as "config.validation_split=dev"."""
    for key, names in KEYS.items():
        if split.casefold() in names:
            return f"config.{key}={split}"
    return f"config.train_split=train+{split} or config.validation_split={split}"
