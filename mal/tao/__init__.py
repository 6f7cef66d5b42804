"""What TAO's users and services expect: data-set roots, parent jobs, and the keys they fill."""

from mal.tao.data_sources import (
    ANNOTATIONS_FILE,
    DATA_SOURCES,
    IMAGES_FILE,
    DataSource,
    data_source_keys,
    data_uris,
    missing_settings,
    root_keys,
    snapshot_uris,
)
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
from mal.tao.run_spec import load_run_spec

__all__ = [
    "ANNOTATIONS_FILE",
    "DATA_SOURCES",
    "IMAGES_FILE",
    "SPEC_PARAMS",
    "DataSource",
    "checkpoint_of",
    "create_inference_result_file_mal",
    "data_source_keys",
    "data_uris",
    "load_run_spec",
    "missing_settings",
    "output_dir",
    "parent_job_keys",
    "parent_model",
    "parent_model_folder",
    "ptm_if_no_resume_model",
    "resume_model",
    "root_keys",
    "snapshot_uris",
]
