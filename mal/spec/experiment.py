"""The experiment spec: dataclasses, the single source of every key, default and bound.

Keys and defaults without a mark are those of TAO's `mal`; keys that exist only here say "Ours".
Defaults give TAO's behaviour, so that a plain TAO spec runs as it does there; what measurement
favours is in `mal/recipes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mal.spec.backbones import BACKBONES, FAMILY_PATTERN
from mal.spec.setting import REQUIRED, SearchRange, section, setting

MIN_CROP_SIZE = 32


@dataclass
class DatasetSpec:
    """Where the boxes and images are, and which boxes count."""

    type: str = setting("coco", "Annotation format.", choices=("coco",))
    train_ann_path: str = setting(
        "", "Training annotations: COCO JSON, local or s3://.", is_popular=True
    )
    train_img_dir: str = setting(
        "", "Training images: folder, .tar.gz/.tgz/.tar/.zip, or s3://.", is_popular=True
    )
    val_ann_path: str = setting(
        "", "Validation annotations: COCO JSON, local or s3://.", is_popular=True
    )
    val_img_dir: str = setting("", "Validation images: folder, archive or s3://.", is_popular=True)
    min_obj_size: float = setting(2048.0, "Train on boxes of w*h above this, px^2.", minimum=0)
    max_obj_size: float = setting(1e10, "Train on boxes of w*h below this, px^2.", minimum=0)
    min_obj_side: float = setting(
        0.0, "Ours. Train on boxes whose both sides reach this, px.", minimum=0
    )
    num_workers_per_gpu: int = setting(
        2, "Loader processes per device; 0 loads in the main process.", minimum=0
    )
    load_mask: bool = setting(True, "Read true masks of the validation set, to measure.")
    crop_size: int = setting(
        512,
        "Side of the network's input, px; a multiple of the patch size.",
        minimum=MIN_CROP_SIZE,
        is_popular=True,
    )
    window_rate: list[float] = setting(
        [],
        "Ours. [low, high]: side of the training window as a multiple of the box's side, drawn "
        "for each axis. Empty: TAO's train.margin_rate.",
        lengths=(0, 2),
        minimum=1,
        is_searchable=False,
    )
    box_jitter: float = setting(
        0.0,
        "Ours. Shift of the training window against the box, as a fraction of the box's side, "
        "drawn from [-v, v] for each axis, so that masks cannot simply fill the crop's centre.",
        minimum=0,
        maximum=1,
    )
    photometric_rate: float = setting(
        1.0,
        "Ours. Strength of the student's colour augmentation, 0-1: 1 is the paper's, 0 none.",
        minimum=0,
        maximum=1,
    )
    shuffle_pool_mib: int = setting(
        256,
        "Ours. Training boxes are shuffled among the images that fit into this memory of a loader "
        "process, MiB decoded, so that each is decoded once an epoch. 0: among the whole set.",
        minimum=0,
        is_searchable=False,
    )


@dataclass
class ModelSpec:
    """The network."""

    arch: str = setting(
        "vit-mae-base/16",
        "Backbone. timm:NAME is ours: a ViT, DINOv3, SAM-ViT, Hiera or TinyViT of timm.",
        choices=BACKBONES.keys(),
        choice_pattern=FAMILY_PATTERN,
        is_popular=True,
    )
    frozen_stages: list[int] = setting(
        [-1],
        "Transformer blocks that are not trained, as [last] or [first, last]; 0 is the patch "
        "embedding; [-1] none.",
        lengths=(1, 2),
        minimum=-1,
        is_searchable=False,
    )
    freeze_backbone: bool = setting(
        False, "Ours. Train the heads only; with train.cached_crops features are computed once."
    )
    mask_head: str = setting(
        "convolutional",
        "Ours. convolutional: the paper's; fused: several blocks of the backbone joined with a "
        "thin stem of the image (small sets, frozen backbones); pyramid: the hybrid's own.",
        choices=("convolutional", "fused", "pyramid"),
    )
    mask_head_num_convs: int = setting(4, "3x3 convolutions of the mask head.", minimum=1)
    mask_head_hidden_channel: int = setting(256, "Width of the mask head.", minimum=1)
    mask_head_out_channel: int = setting(256, "Width of its output.", minimum=1)
    mask_scale_ratio: float = setting(
        2.0, "Upsampling of the features inside the mask head.", exclusive_minimum=0
    )
    mask_scale_ratio_pre: int = setting(1, "Upsampling before the mask head.", minimum=1)
    not_adjust_scale: bool = setting(False, "Do not resize features by the object's size.")
    object_pooling: str = setting(
        "crop",
        "Ours. Features averaged into the object vector: the whole crop (the paper), or those "
        "inside the box minus those outside.",
        choices=("crop", "box"),
    )
    teacher_momentum: float = setting(0.996, "EMA momentum of the teacher.", minimum=0, maximum=1)
    vit_dpr: float = setting(0.0, "Stochastic depth rate.", minimum=0, maximum=1)


@dataclass
class CudnnSpec:
    """cuDNN switches (CUDA only)."""

    benchmark: bool = setting(False, "Let cuDNN time its algorithms.")
    deterministic: bool = setting(True, "Use deterministic algorithms only.")


@dataclass
class TrainSpec:
    """The optimisation, the losses and the crop windows."""

    num_gpus: int = setting(
        1,
        "Devices per node; on CPU the number of processes.",
        minimum=1,
        is_popular=True,
    )
    gpu_ids: list[int] = setting([0], "CUDA devices to use.", is_searchable=False)
    num_nodes: int = setting(
        1,
        "Nodes; a launcher's environment variables take precedence.",
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
        "Ours. Optimiser steps of the run; takes precedence over num_epochs. 0: num_epochs.",
        minimum=0,
        is_searchable=False,
    )
    checkpoint_interval: int = setting(
        1,
        "Write a checkpoint after this many epochs or steps.",
        minimum=1,
        is_popular=True,
    )
    checkpoint_interval_unit: str = setting(
        "epoch", "Unit of checkpoint_interval.", choices=("epoch", "step")
    )
    validation_interval: int = setting(
        1,
        "Validate after this many epochs, and at the end.",
        minimum=1,
        is_popular=True,
    )
    max_val_boxes: int = setting(
        0,
        "Ours. Most boxes to validate on during training; 0: all.",
        minimum=0,
        is_searchable=False,
    )
    resume_training_checkpoint_path: str = setting(
        "",
        "Checkpoint to resume from if the results folder has none of its own.",
    )
    results_dir: str = setting("", "Result folder. Empty: <results_dir>/train.")
    overwrite: bool = setting(
        False,
        "Ours. If the results folder holds another run: delete its results and train anew, "
        "instead of failing. The same run resumes.",
        is_searchable=False,
    )
    pretrained_model_path: str = setting(
        "",
        "Weights to start from: local or s3:// .pth/.ckpt/.safetensors of a backbone (MAE, DeiT, "
        "timm) or of a whole MAL network (ours, TAO's: heads too), or timm:NAME of the hub.",
        is_popular=True,
    )
    batch_size: int = setting(1, "Boxes per device and step.", minimum=1, is_popular=True)
    accum_grad_batches: int = setting(1, "Batches per step.", minimum=1)
    clip_grad_norm: float = setting(
        0.0, "Ours. Largest norm of the gradient; 0: no limit.", minimum=0
    )
    use_amp: bool = setting(True, "Mixed precision on CUDA (train.precision auto).")
    precision: str = setting(
        "auto",
        "Ours. auto: fp16 on CUDA with use_amp, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    supervision: str = setting(
        "box",
        "Ours. box: learn from boxes alone; mask: train the same network on true masks, as an "
        "upper bound for boxes.",
        choices=("box", "mask"),
        is_searchable=False,
    )
    cached_crops: int = setting(
        0,
        "Ours. With model.freeze_backbone: crops drawn once, shared evenly among the boxes, whose "
        "features are computed once and cached. 0: features are computed in every step.",
        minimum=0,
    )
    feature_cache_gib: float = setting(
        20.0,
        "Ours. Limit of the cached features of all runs, GiB; the least recently used are removed.",
        exclusive_minimum=0,
        is_searchable=False,
    )
    compile: bool = setting(
        False,
        "Ours. Compile the student's backbone (torch.compile); a CPU needs a C++ compiler.",
        is_searchable=False,
    )
    profile: bool = setting(
        False,
        "Ours. Report at the end how long each part took: a table, and profile.json.",
        is_searchable=False,
    )
    oom_fallback: bool = setting(
        False,
        "Ours. When memory runs out, train again with the next smaller crop, backbone or batch. "
        "Only for a run of one process.",
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
    min_lr: float = setting(0.0, "Lowest learning rate; 0: min_lr_rate * the highest.", minimum=0)
    min_lr_rate: float = setting(
        0.02, "Lowest learning rate, as a fraction of the highest, 0-1.", minimum=0, maximum=1
    )
    num_wave: float = setting(
        1.0, "Half periods of the cosine: 1 falls once to the lowest rate, 0 never.", minimum=0
    )
    warmup_epochs: int = setting(1, "Epochs in which the learning rate rises linearly.", minimum=0)
    warmup_rate: float = setting(
        0.0,
        "Ours. Fraction of the run in which the learning rate rises linearly; 0: warmup_epochs.",
        minimum=0,
        maximum=1,
    )
    wd: float = setting(
        5e-4,
        "Weight decay of weights (never of biases, norms or position embeddings).",
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
        "[low, high]: margin of the training window as a fraction of half the box's side, drawn "
        "and split at random between opposite sides.",
        lengths=(2,),
        minimum=0,
        is_searchable=False,
    )
    test_margin_rate: list[float] = setting(
        [0.6, 0.6],
        "Margin of the prediction window, both sides together, as a fraction of half the box's "
        "side; the first value counts.",
        lengths=(2,),
        minimum=0,
        is_searchable=False,
    )
    mask_thres: list[float] = setting(
        [0.1],
        "Lowest probability of a mask pixel: one value, or three for small, medium, large boxes.",
        lengths=(1, 3),
        minimum=0,
        maximum=1,
        is_searchable=False,
    )
    loss_mil_weight: float = setting(4.0, "Weight of the multiple-instance loss.", minimum=0)
    loss_mil_step: int = setting(
        1000, "Optimiser steps in which this weight rises linearly.", minimum=0
    )
    loss_crf_weight: float = setting(0.5, "Weight of the CRF loss.", minimum=0)
    loss_crf_step: int = setting(
        4000, "Optimiser steps in which this weight rises linearly.", minimum=0
    )
    loss_crf_window: list[float] = setting(
        [],
        "Ours. [begin, end] as fractions of the run, 0-1: the CRF weight rises from 0 at begin to "
        "its full value at end. Empty: loss_crf_step.",
        lengths=(0, 2),
        minimum=0,
        maximum=1,
        is_searchable=False,
    )
    loss_point_weight: float = setting(
        3.0, "Ours. Weight of the loss at labelled points.", minimum=0
    )
    crf_zeta: float = setting(0.1, "Colour bandwidth of the CRF.", exclusive_minimum=0)
    crf_kernel_size: int = setting(3, "Side of the CRF's neighbourhood.", minimum=1, is_odd=True)
    crf_dilations: list[int] = setting(
        [1],
        "Ours. Distances of the CRF's neighbours, map pixels; several are summed.",
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
        "Ours. rgb: normalised RGB (the paper); lab: CIELAB / 100.",
        choices=("rgb", "lab"),
    )
    crf_view: str = setting(
        "student",
        "Ours. Crop that the CRF takes its colours from: the student's augmented one (the paper) "
        "or the teacher's unaugmented one.",
        choices=("student", "teacher"),
    )
    crf_start: str = setting(
        "clamped",
        "Ours. Initial probabilities of the CRF. clamped: the predicted ones, clamped (the paper); "
        "balanced: the upper clamp above 0.5, the lower one below; soft: the same as clamped. "
        "Outside the box: the lower clamp.",
        choices=("clamped", "balanced", "soft"),
        option_weights=(1, 1, 0),
    )
    crf_start_thres: float = setting(
        0.5,
        "Ours. Probability from which the CRF initialises a pixel as object.",
        exclusive_minimum=0,
        maximum=0.99,
    )
    prior_weight: float = setting(
        0.0,
        "Ours. Weight of the training-free prior (the box, propagated over similar tokens) in the "
        "initial pseudo label, 0-1.",
        minimum=0,
        maximum=1,
    )
    affinity_weight: float = setting(
        0.0,
        "Ours. Weight, in the initial pseudo label, of its propagation over similar tokens, 0-1.",
        minimum=0,
        maximum=1,
    )
    affinity_temperature: float = setting(
        0.1, "Ours. Temperature of the token affinity exp((cos - 1) / T).", exclusive_minimum=0
    )


@dataclass
class PredictionSpec:
    """What evaluate and inference share."""

    checkpoint: str = setting(
        REQUIRED,
        "Checkpoint (.pth), exported model (.onnx) or a train job's results folder.",
        is_popular=True,
    )
    batch_size: int = setting(3, "Boxes per forward pass.", minimum=1, is_popular=True)
    num_gpus: int = setting(1, "Devices per node.", minimum=1)
    gpu_ids: list[int] = setting([0], "CUDA devices to use.", is_searchable=False)
    num_nodes: int = setting(1, "Nodes.", minimum=1)
    results_dir: str = setting("", "Result folder. Empty: <results_dir>/<action>.")
    trt_engine: str = setting("", "TensorRT engine; not supported here: export to ONNX.")
    use_flip_test: bool = setting(False, "Average with the mirrored crop's prediction.")
    use_mixed_model_test: bool = setting(False, "Average student and teacher.")
    use_teacher_test: bool = setting(False, "Predict with the teacher.")
    precision: str = setting(
        "auto",
        "Ours. auto: fp16 on CUDA with train.use_amp, else fp32. On a CPU without bf16 units bf16 "
        "is slower than fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    crop_sizes: list[int] = setting(
        [],
        "Ours. Crops of several sizes, px, multiples of a ViT's patch: each box gets the smallest "
        "that holds its window, or the largest. Empty: the model's one crop for all.",
        minimum=MIN_CROP_SIZE,
        is_searchable=False,
    )


@dataclass
class EvaluateSpec(PredictionSpec):
    """Measuring against true masks."""

    comp_clustering: bool = setting(False, "Keep only the largest connected part of a mask.")
    training_free: bool = setting(
        False, "Ours. Measure the training-free baseline of a ViT too (one more pass)."
    )
    min_box_area: float = setting(0.0, "Ours. Count boxes of w*h above this, px^2.", minimum=0)
    min_box_side: float = setting(
        0.0, "Ours. Count boxes whose both sides reach this, px.", minimum=0
    )


@dataclass
class InferenceSpec(PredictionSpec):
    """Writing masks for boxes."""

    ann_path: str = setting("", "Boxes to label: COCO JSON, local or s3://.", is_popular=True)
    img_dir: str = setting("", "Their images: folder, archive or s3://.", is_popular=True)
    label_dump_path: str = setting(
        "instances_val2017_mal.json",
        "Output file; relative paths lie in the result folder.",
        is_popular=True,
    )
    load_mask: bool = setting(False, "Keep true masks for the report.")


@dataclass
class ExportSpec:
    """Writing an ONNX model. Ours: TAO has no export action for MAL."""

    checkpoint: str = setting(
        REQUIRED, "Checkpoint (.pth), or a train job's results folder.", is_popular=True
    )
    onnx_file: str = setting(
        "mal_model.onnx",
        "Output; relative paths lie in the result folder. Another NAME.onnx comes with NAME.json, "
        "NAME_encoder.onnx and NAME_decoder.onnx.",
    )
    opset_version: int = setting(
        18, "ONNX opset; PyTorch's exporter writes none below 18.", minimum=18
    )
    precision: str = setting(
        "fp32",
        "int8: matrix products in 8 bits, for ONNX Runtime on a CPU.",
        choices=("fp32", "int8"),
    )
    batch_size: int = setting(-1, "Fixed batch; -1 or 0: dynamic.", minimum=-1)
    results_dir: str = setting("", "Result folder. Empty: <results_dir>/export.")
    use_mixed_model_test: bool = setting(False, "Export the mean of student and teacher.")
    use_teacher_test: bool = setting(False, "Export the teacher.")


@dataclass
class WandbSpec:
    """Weights & Biases logging of a training run."""

    enable: bool = setting(
        True, "Log to Weights & Biases where wandb is installed and logged in; else say so once."
    )
    project: str = setting("TAO Toolkit", "Project.")
    entity: str = setting("", "Entity.")
    group: str = setting("", "Group.")
    name: str = setting("TAO Toolkit Training", "Run name.")
    run_id: str = setting("", "Run id to continue.")
    reinit: bool = setting(False, "Allow several runs in one process.")
    save_code: bool = setting(False, "Save the code.")
    sync_tensorboard: bool = setting(False, "Copy what TensorBoard gets.")
    tags: list[str] = setting(["tao-toolkit"], "Tags.", is_searchable=False)


@dataclass
class ExperimentSpec:
    """The whole spec; every action reads the sections it needs."""

    results_dir: str = setting(
        "", "Root of the results: <results_dir>/<action>/, local or s3://.", is_popular=True
    )
    model_name: str = setting("", "Accepted for TAO's sake; has no effect.")
    encryption_key: str = setting(
        "",
        "Accepted for TAO's sake; nothing is encrypted, and the key is kept nowhere.",
        is_ignored=True,
    )
    device: str = setting(
        "auto", "Ours. auto: CUDA where there is one.", choices=("auto", "cpu", "cuda")
    )
    dataset: DatasetSpec = section(DatasetSpec, "Where the boxes and images are.")
    model: ModelSpec = section(ModelSpec, "The network.")
    train: TrainSpec = section(TrainSpec, "Optimisation, losses and windows.")
    evaluate: EvaluateSpec = section(EvaluateSpec, "Measuring against true masks.")
    inference: InferenceSpec = section(InferenceSpec, "Writing masks for boxes.")
    export: ExportSpec = section(ExportSpec, "Writing an ONNX model.")
    wandb: WandbSpec = section(WandbSpec, "Weights & Biases logging of a training run.")


ACTIONS = ("train", "evaluate", "inference", "export")
