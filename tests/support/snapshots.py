"""A data set as a step of the pipeline has pinned it, for tests that read none of its files."""

from mal.registry.snapshot import DatasetManifest, SplitSnapshot

SPLIT = SplitSnapshot(
    images_uri="s3://bucket/images.tar.gz",
    annotations_uri="s3://bucket/train.json",
    annotations_sha256="a" * 64,
    images_sha256="b" * 64,
    num_images=3,
    num_missing_images=0,
    num_boxes=5,
    num_crowds=0,
    num_categories=2,
    has_masks=False,
    image_bytes=10,
)
DATA = DatasetManifest("c" * 64, SPLIT, None, SPLIT)
