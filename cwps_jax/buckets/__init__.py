"""Folders of object stores, gs:// and s3://: a folder on this machine, and its copy in a bucket."""

from cwps_jax.buckets.bucket import Bucket, is_address
from cwps_jax.buckets.mirror import Mirror, mirrored_from
from cwps_jax.buckets.places import local_folder

__all__ = ["Bucket", "Mirror", "is_address", "local_folder", "mirrored_from"]
