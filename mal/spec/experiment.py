"""The experiment spec: dataclasses, the single source of every key, default and bound.

Keys and defaults are those of TAO's `mal`; a description that begins with "[mal]" marks a key that
TAO does not have. The defaults give TAO's behaviour, so that a TAO spec runs as it does there;
settings that measured better are in `mal/recipes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mal.spec.backbones import BACKBONES, FAMILY_PATTERN
from mal.spec.setting import REQUIRED, SearchRange, section, setting

MIN_CROP_SIZE = 32
ANNOTATION_TYPES = ("auto", "coco", "voc", "yolo", "labelme", "labelstudio", "kitti")


# Pillow refuses larger ones, which may be made to fill the memory.
DEFAULT_MAX_IMAGE_MPX = 178.95697


@dataclass
class DatasetSpec:
    """The data sets, and which of their boxes are used."""

    type: str = setting(
        "coco",
        "Format of the annotations. [mal] auto, and coco, which is TAO's default: by the content; "
        "any other: the content must be of this format.",
        choices=ANNOTATION_TYPES,
    )
    train_ann_path: str = setting(
        "",
        "Training annotations: COCO JSON or another format, local or s3://. [mal] Several as a "
        "list.",
        is_popular=True,
        is_uri_list=True,
    )
    train_img_dir: str = setting(
        "",
        "Training images: folder, .tar.gz/.tgz/.tar/.zip, or s3://. [mal] One for each annotation "
        "file as a list, or one for all.",
        is_popular=True,
        is_uri_list=True,
    )
    val_ann_path: str = setting(
        "",
        "Validation annotations, as for training.",
        is_popular=True,
        is_uri_list=True,
    )
    val_img_dir: str = setting(
        "", "Validation images, as for training.", is_popular=True, is_uri_list=True
    )
    min_obj_size: float = setting(
        2048.0, "Train on boxes whose w*h is above this, px^2.", minimum=0
    )
    max_obj_size: float = setting(1e10, "Train on boxes whose w*h is below this, px^2.", minimum=0)
    min_obj_side: float = setting(
        0.0, "[mal] Train on boxes whose sides are both at least this, px.", minimum=0
    )
    num_workers_per_gpu: int = setting(
        2, "Loader processes per device; 0 loads in the training process.", minimum=0
    )
    load_mask: bool = setting(True, "Read the true masks of the validation set to measure with.")
    crop_size: int = setting(
        512,
        "Side of the network's input, px; a multiple of the patch size.",
        minimum=MIN_CROP_SIZE,
        is_popular=True,
    )
    window_rate: list[float] = setting(
        [],
        "[mal] [low, high]: range of the training window's side as a multiple of the box's side, "
        "drawn per axis. Empty uses TAO's train.margin_rate.",
        lengths=(0, 2),
        minimum=1,
        is_searchable=False,
    )
    box_jitter: float = setting(
        0.0,
        "[mal] Shift of the training window relative to the box, as a fraction of the box's side, "
        "drawn from [-v, v] per axis. Keeps the network from learning to fill the box.",
        minimum=0,
        maximum=1,
    )
    photometric_rate: float = setting(
        1.0,
        "[mal] Strength of the student's colour augmentation: 1 as in the paper, 0 for none.",
        minimum=0,
        maximum=1,
    )
    shuffle_pool_mib: int = setting(
        256,
        "[mal] Training boxes are shuffled among as many images as fit, decoded, into this memory "
        "of a loader process, MiB; each image is then decoded once per epoch. 0 shuffles the whole "
        "set.",
        minimum=0,
        is_searchable=False,
    )
    max_image_mpx: float = setting(
        DEFAULT_MAX_IMAGE_MPX,
        "[mal] Largest image that is read, millions of pixels; each takes 3 MB a million.",
        exclusive_minimum=0,
        maximum=100_000,
        is_searchable=False,
    )


@dataclass
class ModelSpec:
    """The network."""

    arch: str = setting(
        "vit-mae-base/16",
        "Backbone. [mal] timm:NAME: a ViT, DINOv3, SAM-ViT, Hiera or TinyViT of timm.",
        choices=BACKBONES.keys(),
        choice_pattern=FAMILY_PATTERN,
        is_popular=True,
    )
    frozen_stages: list[int] = setting(
        [-1],
        "Transformer blocks that are not trained, as [last] or [first, last]; 0 is the patch "
        "embedding; [-1] trains all.",
        lengths=(1, 2),
        minimum=-1,
        is_searchable=False,
    )
    freeze_backbone: bool = setting(
        False, "[mal] Train only the heads; with train.cached_crops, features are computed once."
    )
    mask_head: str = setting(
        "convolutional",
        "[mal] convolutional: as in the paper; fused: several blocks of the backbone and a small "
        "convolutional stem of the image (for small sets and frozen backbones); pyramid: for the "
        "hybrid.",
        choices=("convolutional", "fused", "pyramid"),
    )
    mask_head_num_convs: int = setting(4, "3x3 convolutions of the mask head.", minimum=1)
    mask_head_hidden_channel: int = setting(256, "Hidden channels of the mask head.", minimum=1)
    mask_head_out_channel: int = setting(256, "Output channels of the mask head.", minimum=1)
    mask_scale_ratio: float = setting(
        2.0, "Upsampling of the features inside the mask head.", exclusive_minimum=0
    )
    mask_scale_ratio_pre: int = setting(1, "Upsampling before the mask head.", minimum=1)
    not_adjust_scale: bool = setting(False, "Do not resize features by the object's size.")
    object_pooling: str = setting(
        "crop",
        "[mal] Features averaged into the object vector. crop: the whole crop (as in the paper); "
        "box: those inside the box minus those outside.",
        choices=("crop", "box"),
    )
    teacher_momentum: float = setting(0.996, "EMA momentum of the teacher.", minimum=0, maximum=1)
    vit_dpr: float = setting(0.0, "Stochastic depth rate.", minimum=0, maximum=1)


@dataclass
class CudnnSpec:
    """cuDNN switches (CUDA only)."""

    benchmark: bool = setting(False, "Let cuDNN benchmark its algorithms.")
    deterministic: bool = setting(True, "Use only deterministic algorithms.")


@dataclass
class TrainSpec:
    """Optimiser, losses and crop windows."""

    num_gpus: int = setting(
        1,
        "Devices per node; on CPUs the number of processes.",
        minimum=1,
        is_popular=True,
    )
    gpu_ids: list[int] = setting([0], "CUDA devices to use.", is_searchable=False)
    num_nodes: int = setting(
        1,
        "Nodes; the environment of a launcher overrides it.",
        minimum=1,
        is_popular=True,
    )
    seed: int = setting(1234, "Seed of all random numbers; -1 draws one.", minimum=-1)
    cudnn: CudnnSpec = section(CudnnSpec, "cuDNN switches (CUDA only).")
    num_epochs: int = setting(
        10,
        "Passes over the training boxes (or cached crops).",
        minimum=1,
        is_popular=True,
    )
    max_steps: int = setting(
        0,
        "[mal] Optimiser steps of the run, instead of num_epochs; 0 uses num_epochs.",
        minimum=0,
        is_searchable=False,
    )
    checkpoint_interval: int = setting(
        1,
        "Interval between checkpoints, in checkpoint_interval_unit.",
        minimum=1,
        is_popular=True,
    )
    checkpoint_interval_unit: str = setting(
        "epoch", "Unit of checkpoint_interval.", choices=("epoch", "step")
    )
    validation_interval: int = setting(
        1,
        "Interval between validations, epochs; the last epoch is always validated.",
        minimum=1,
        is_popular=True,
    )
    max_val_boxes: int = setting(
        0,
        "[mal] Largest number of boxes to validate on during training; 0 for all.",
        minimum=0,
        is_searchable=False,
    )
    resume_training_checkpoint_path: str = setting(
        "",
        "Checkpoint to resume if the results folder has none.",
    )
    results_dir: str = setting("", "Results folder. Empty uses <results_dir>/train.")
    overwrite: bool = setting(
        False,
        "[mal] If the results folder has another run, remove its results and train, instead of "
        "an error. The same run is resumed.",
        is_searchable=False,
    )
    pretrained_model_path: str = setting(
        "",
        "Weights to start from: a local or s3:// .pth, .ckpt or .safetensors file of a backbone "
        "(MAE, DeiT, timm) or of a whole MAL network (mal's or TAO's), or timm:NAME from the hub.",
        is_popular=True,
    )
    batch_size: int = setting(1, "Boxes per device and step.", minimum=1, is_popular=True)
    accum_grad_batches: int = setting(1, "Batches per optimiser step.", minimum=1)
    clip_grad_norm: float = setting(
        0.0, "[mal] Largest norm of the gradient; 0 does not clip.", minimum=0
    )
    use_amp: bool = setting(True, "Mixed precision on CUDA, with train.precision=auto.")
    precision: str = setting(
        "auto",
        "[mal] auto is fp16 on CUDA with use_amp, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    supervision: str = setting(
        "box",
        "[mal] box: train on boxes alone; mask: train the same network on true masks, to measure "
        "the upper bound.",
        choices=("box", "mask"),
        is_searchable=False,
    )
    cached_crops: int = setting(
        0,
        "[mal] With model.freeze_backbone: number of crops, the same for each box, that are drawn "
        "once and whose features are cached. 0 computes features in every step.",
        minimum=0,
    )
    feature_cache_gib: float = setting(
        20.0,
        "[mal] Largest size of the cached features of all runs, GiB; the least recently used are "
        "deleted.",
        exclusive_minimum=0,
        is_searchable=False,
    )
    compile: bool = setting(
        False,
        "[mal] Compile the student's backbone with torch.compile; on a CPU it needs a C++ "
        "compiler.",
        is_searchable=False,
    )
    profile: bool = setting(
        False,
        "[mal] Measure the time of each part of the training: logs a table, writes profile.json.",
        is_searchable=False,
    )
    oom_fallback: bool = setting(
        False,
        "[mal] When memory runs out, train again with the next smaller crop, backbone or batch. "
        "Only for runs of one process.",
        is_searchable=False,
    )
    optim_type: str = setting("adamw", "Optimiser.", choices=("adamw",))
    optim_momentum: float = setting(0.9, "No effect with adamw.", minimum=0, maximum=1)
    lr: float = setting(
        1e-6,
        "Learning rate per box: the effective rate is lr * devices * nodes * batch_size.",
        minimum=0,
        search=SearchRange(1e-7, 1e-2, log=True),
        is_popular=True,
    )
    min_lr: float = setting(
        0.0, "Final rate of the cosine schedule; 0 uses lr * min_lr_rate.", minimum=0
    )
    min_lr_rate: float = setting(
        0.02, "Final rate as a fraction of the rate.", minimum=0, maximum=1
    )
    num_wave: float = setting(
        1.0,
        "Half periods of the cosine: 1 falls once to the final rate, 0 keeps the rate.",
        minimum=0,
    )
    warmup_epochs: int = setting(1, "Linear warm-up of the learning rate, epochs.", minimum=0)
    warmup_rate: float = setting(
        0.0,
        "[mal] Linear warm-up as a fraction of the run; 0 uses warmup_epochs.",
        minimum=0,
        maximum=1,
    )
    wd: float = setting(
        5e-4,
        "Weight decay, not applied to biases, norms and position embeddings.",
        minimum=0,
        search=SearchRange(1e-6, 1e-1, log=True),
        is_popular=True,
    )
    optim_eps: float = setting(1e-8, "AdamW's epsilon.", exclusive_minimum=0)
    optim_betas: list[float] = setting(
        [0.9, 0.9],
        "AdamW's betas.",
        lengths=(2,),
        minimum=0,
        exclusive_maximum=1,
        is_searchable=False,
    )
    margin_rate: list[float] = setting(
        [0.0, 1.2],
        "[low, high]: range of the training window's margin as a fraction of half the box; it is "
        "divided at random between opposite sides.",
        lengths=(2,),
        minimum=0,
        is_searchable=False,
    )
    test_margin_rate: list[float] = setting(
        [0.6, 0.6],
        "Sum of the margins of opposite sides of the prediction window; only the first value is "
        "used.",
        lengths=(2,),
        minimum=0,
        is_searchable=False,
    )
    mask_thres: list[float] = setting(
        [0.1],
        "Mask threshold of the probability: one value, or three for small, medium and large "
        "objects.",
        lengths=(1, 3),
        minimum=0,
        maximum=1,
        is_searchable=False,
    )
    loss_mil_weight: float = setting(4.0, "Weight of the multiple-instance loss.", minimum=0)
    loss_mil_step: int = setting(
        1000, "Linear warm-up of loss_mil_weight, optimiser steps.", minimum=0
    )
    loss_crf_weight: float = setting(0.5, "Weight of the CRF loss.", minimum=0)
    loss_crf_step: int = setting(
        4000, "Linear warm-up of loss_crf_weight, optimiser steps.", minimum=0
    )
    loss_crf_window: list[float] = setting(
        [],
        "[mal] [begin, end] as fractions of the run: the CRF weight is 0 before begin and full "
        "after end. Empty uses loss_crf_step.",
        lengths=(0, 2),
        minimum=0,
        maximum=1,
        is_searchable=False,
    )
    loss_point_weight: float = setting(
        3.0, "[mal] Weight of the point loss, for annotations with points.", minimum=0
    )
    crf_zeta: float = setting(0.1, "Colour bandwidth of the CRF.", exclusive_minimum=0)
    crf_kernel_size: int = setting(
        3, "Side of the CRF's neighbourhood, px of the mask map.", minimum=1, is_odd=True
    )
    crf_dilations: list[int] = setting(
        [1],
        "[mal] Dilations of the neighbourhood, px of the mask map; several are summed.",
        lengths=(1, 2, 3, 4),
        minimum=1,
        is_searchable=False,
    )
    crf_num_iter: int = setting(100, "Mean-field iterations.", minimum=1)
    crf_size_ratio: int = setting(1, "Size of the CRF's map relative to the mask map.", minimum=1)
    crf_value_high_thres: float = setting(
        0.9, "Upper clamp of the mean field.", exclusive_minimum=0.5, exclusive_maximum=1
    )
    crf_value_low_thres: float = setting(
        0.1, "Lower clamp of the mean field.", exclusive_minimum=0, exclusive_maximum=0.5
    )
    crf_color_space: str = setting(
        "rgb",
        "[mal] rgb: normalised RGB (the paper); lab: CIELAB / 100.",
        choices=("rgb", "lab"),
    )
    crf_view: str = setting(
        "student",
        "[mal] Crop whose colours the CRF uses: the student's augmented one (as in the paper) or "
        "the teacher's unchanged one.",
        choices=("student", "teacher"),
    )
    crf_start: str = setting(
        "clamped",
        "[mal] Initial label of the CRF. clamped: the clamped probabilities (as in the paper); "
        "balanced: the clamp on their side of crf_start_thres; soft: the same as clamped. Outside "
        "the box it is the lower clamp.",
        choices=("clamped", "balanced", "soft"),
        option_weights=(1, 1, 0),
    )
    crf_start_thres: float = setting(
        0.5,
        "[mal] Probability above which a pixel starts as object in the CRF.",
        exclusive_minimum=0,
        maximum=0.99,
    )
    prior_weight: float = setting(
        0.0,
        "[mal] Weight of the training-free prior (the box spread over similar tokens) in the "
        "initial pseudo label.",
        minimum=0,
        maximum=1,
    )
    affinity_weight: float = setting(
        0.0,
        "[mal] Weight of the propagation over similar tokens in the initial pseudo label.",
        minimum=0,
        maximum=1,
    )
    affinity_temperature: float = setting(
        0.1, "[mal] Temperature of the token affinity exp((cos - 1) / T).", exclusive_minimum=0
    )


@dataclass
class PredictionSpec:
    """The keys that evaluate and inference share."""

    checkpoint: str = setting(
        REQUIRED,
        "Checkpoint (.pth), exported model (.onnx), or results folder of a training.",
        is_popular=True,
    )
    batch_size: int = setting(3, "Boxes per forward pass.", minimum=1, is_popular=True)
    num_gpus: int = setting(1, "Devices per node.", minimum=1)
    gpu_ids: list[int] = setting([0], "CUDA devices to use.", is_searchable=False)
    num_nodes: int = setting(1, "Nodes.", minimum=1)
    results_dir: str = setting("", "Results folder. Empty uses <results_dir>/<action>.")
    trt_engine: str = setting("", "TensorRT engine; not supported: export to ONNX.")
    use_flip_test: bool = setting(False, "Average with the prediction of the mirrored crop.")
    use_mixed_model_test: bool = setting(False, "Average student and teacher.")
    use_teacher_test: bool = setting(False, "Predict with the teacher.")
    precision: str = setting(
        "auto",
        "[mal] Precision of the network: auto is fp16 on CUDA with train.use_amp, else fp32. On a "
        "CPU without bf16 units, bf16 is slower than fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    crop_sizes: list[int] = setting(
        [],
        "[mal] Crop sizes, px, multiples of a ViT's patch: each box uses the smallest that "
        "contains "
        "its window, or the largest. Empty uses the model's crop size.",
        minimum=MIN_CROP_SIZE,
        is_searchable=False,
    )


@dataclass
class EvaluateSpec(PredictionSpec):
    """Measure a model against true masks."""

    comp_clustering: bool = setting(False, "Keep only the largest connected part of a mask.")
    training_free: bool = setting(
        False, "[mal] Also measure the training-free baseline of a ViT, in another pass."
    )
    min_box_area: float = setting(
        0.0, "[mal] Measure boxes whose w*h is above this, px^2.", minimum=0
    )
    min_box_side: float = setting(
        0.0, "[mal] Measure boxes whose sides are both at least this, px.", minimum=0
    )


@dataclass
class InferenceSpec(PredictionSpec):
    """Write masks for boxes."""

    ann_path: str = setting(
        "",
        "Boxes to label: COCO JSON or another format, local or s3://. [mal] Several as a list.",
        is_popular=True,
        is_uri_list=True,
    )
    img_dir: str = setting(
        "", "Images of the boxes: folder, archive or s3://.", is_popular=True, is_uri_list=True
    )
    label_dump_path: str = setting(
        "instances_val2017_mal.json",
        "Output file; a relative path is below the results folder.",
        is_popular=True,
    )
    load_mask: bool = setting(False, "Keep true masks for the report.")
    label_format: str = setting(
        "rle",
        "[mal] Form of the masks in the label file: compressed RLE, or polygons along the edges of "
        "the pixels, with a bridge to each hole.",
        choices=("rle", "polygon"),
        is_searchable=False,
    )
    keep: list[str] = setting(
        [],
        "[mal] What stays as the input has it: masks (objects with a readable mask are not "
        "predicted), scores (the model's goes into mask_score only), crowds (the regions of "
        "crowds).",
        choices=("masks", "scores", "crowds"),
        is_searchable=False,
    )
    tight_boxes: bool = setting(
        False,
        "[mal] Write the extent of each mask as its bbox; the given box goes into given_bbox.",
        is_searchable=False,
    )
    allow_empty: bool = setting(
        False,
        "[mal] Succeed although more than half of the boxes get an empty mask. Unless it is set, "
        "the exit code is then 2; the labels are written in both cases.",
        is_searchable=False,
    )


@dataclass
class ExportSpec:
    """Write an ONNX model. TAO has no export action for MAL."""

    checkpoint: str = setting(
        REQUIRED, "Checkpoint (.pth), or results folder of a training.", is_popular=True
    )
    onnx_file: str = setting(
        "mal_model.onnx",
        "Output file; a relative path is below the results folder. NAME.onnx comes with NAME.json, "
        "NAME_encoder.onnx and NAME_decoder.onnx.",
    )
    opset_version: int = setting(
        18, "ONNX opset; PyTorch's exporter supports 18 and later.", minimum=18
    )
    precision: str = setting(
        "fp32",
        "int8 quantises matrix products, for ONNX Runtime on a CPU.",
        choices=("fp32", "int8"),
    )
    batch_size: int = setting(-1, "Fixed batch size; -1 or 0 for a dynamic one.", minimum=-1)
    results_dir: str = setting("", "Results folder. Empty uses <results_dir>/export.")
    use_mixed_model_test: bool = setting(False, "Export the mean of student and teacher.")
    use_teacher_test: bool = setting(False, "Export the teacher.")


@dataclass
class StorageSpec:
    """How object stores are read and written."""

    retry_s: int = setting(
        600,
        "[mal] How long an object store may be away before an action gives up, s; 0 does not wait. "
        "A training goes on meanwhile. In a pod, the results of a finished action are tried for as "
        "long as the pod lives.",
        minimum=0,
        is_searchable=False,
    )
    upload_interval_s: int = setting(
        100,
        "[mal] A remote results folder gets records and a checkpoint at least this often, s. Raise "
        "it where a checkpoint takes seconds to write.",
        minimum=1,
        is_searchable=False,
    )


@dataclass
class WandbSpec:
    """Weights & Biases logging of a training run."""

    enable: bool = setting(
        True,
        "Log to Weights & Biases if wandb is installed and logged in; otherwise log the reason "
        "once.",
    )
    project: str = setting("TAO Toolkit", "Project.")
    entity: str = setting("", "Entity.")
    group: str = setting("", "Group.")
    name: str = setting("TAO Toolkit Training", "Run name.")
    run_id: str = setting("", "Run id to continue.")
    reinit: bool = setting(False, "Allow several runs in one process.")
    save_code: bool = setting(False, "Save the code.")
    sync_tensorboard: bool = setting(False, "Copy the TensorBoard logs.")
    tags: list[str] = setting(["tao-toolkit"], "Tags.", is_searchable=False)


@dataclass
class ExperimentSpec:
    """The whole spec; an action reads only the sections that it needs."""

    results_dir: str = setting(
        "", "Root of the results: <results_dir>/<action>/, local or s3://.", is_popular=True
    )
    model_name: str = setting("", "Accepted for compatibility with TAO; has no effect.")
    encryption_key: str = setting(
        "",
        "Accepted for compatibility with TAO; nothing is encrypted, and the key is not recorded.",
        is_ignored=True,
    )
    device: str = setting(
        "auto", "[mal] auto uses CUDA if it is available.", choices=("auto", "cpu", "cuda")
    )
    dataset: DatasetSpec = section(DatasetSpec, "The data sets.")
    model: ModelSpec = section(ModelSpec, "The network.")
    train: TrainSpec = section(TrainSpec, "Optimiser, losses and windows.")
    evaluate: EvaluateSpec = section(EvaluateSpec, "Measure a model against true masks.")
    inference: InferenceSpec = section(InferenceSpec, "Write masks for boxes.")
    export: ExportSpec = section(ExportSpec, "Write an ONNX model.")
    storage: StorageSpec = section(StorageSpec, "How object stores are read and written.")
    wandb: WandbSpec = section(WandbSpec, "Weights & Biases logging of a training run.")


ACTIONS = ("train", "evaluate", "inference", "export")
