#!/bin/sh
# What each kind of annotation gives: trains and measures a set with boxes, boxes with 1, 3 and 10 points, and points only.
#
#     docs/measure_points.sh SET_FOLDER RECIPE OUT SEED [key=value ...]
#
# SET_FOLDER holds train.json, val.json (with true masks) and images/. Every kind is measured on its own kind of val objects;
# "point" trains on a half of the objects with a box and the others with a point, and is measured on points only.
set -eu
set_folder=$1 recipe=$2 out=$3 seed=$4
shift 4
mkdir -p "$out"

measure() { # name, training annotations, validation annotations
    name=$1 train=$2 val=$3
    shift 3
    data="dataset.train_ann_path=$train dataset.train_img_dir=$set_folder/images
          dataset.val_ann_path=$val dataset.val_img_dir=$set_folder/images"
    # Words of $data are the arguments: paths with spaces are not for this script.
    python -m mal train -e "recipe:$recipe" $data train.seed="$seed" results_dir="$out/$name" "$@"
    python -m mal evaluate -e "$out/$name/train/experiment.yaml" $data \
        evaluate.checkpoint="$out/$name/train" evaluate.training_free=false results_dir="$out/$name"
}

measure box "$set_folder/train.json" "$set_folder/val.json" "$@"
for points in 1 3 10; do
    for split in train val; do
        python docs/sample_points.py "$set_folder/$split.json" "$out/$split-$points.json" --points $points --seed "$seed"
    done
    measure "box+$points" "$out/train-$points.json" "$out/val-$points.json" "$@"
done
python docs/sample_points.py "$set_folder/train.json" "$out/train-half.json" --points 1 --seed "$seed" --without-boxes 0.5
python docs/sample_points.py "$set_folder/val.json" "$out/val-point.json" --points 1 --seed "$seed" --without-boxes 1
measure point "$out/train-half.json" "$out/val-point.json" "$@"
