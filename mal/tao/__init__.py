"""How jobs hang together: data-set roots, parent jobs, and the spec keys that follow from them."""

from mal.tao.data_sources import (
    ANNOTATIONS_FILE,
    DATA_SOURCES,
    IMAGES_FILE,
    DataSource,
    data_source_keys,
    missing_places,
    places_of,
    root_keys,
    snapshot_uris,
)
from mal.tao.job_spec import load_job_spec
from mal.tao.parent_job import (
    SPEC_PARAMS,
    checkpoint_of,
    create_inference_result_file_mal,
    output_dir,
    parent_job_keys,
    parent_model,
    parent_model_folder,
    ptm_if_no_resume_model,
    resume_model,
)

__all__ = [
    "ANNOTATIONS_FILE",
    "DATA_SOURCES",
    "IMAGES_FILE",
    "SPEC_PARAMS",
    "DataSource",
    "checkpoint_of",
    "create_inference_result_file_mal",
    "data_source_keys",
    "load_job_spec",
    "missing_places",
    "output_dir",
    "parent_job_keys",
    "parent_model",
    "parent_model_folder",
    "places_of",
    "ptm_if_no_resume_model",
    "resume_model",
    "root_keys",
    "snapshot_uris",
]
