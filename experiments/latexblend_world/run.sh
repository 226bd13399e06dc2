#!/usr/bin/env bash
# Six held-out subjects, ten prompts, four seeds; then pairs. About half an hour on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
declare -A noun=([rex]=dog [mittens]=cat [pip]=bird [clover]=rabbit [bolt]=robot [herbie]=car)
banks=()
for name in "${!noun[@]}"; do
    python train.py +experiment=concept_dog name="suite_$name" concept="$name" class_noun="${noun[$name]}" \
        data.instance_dir="world/subjects/$name" '~callbacks.samples' "$@"
    banks+=("bank.$name=$(ls -t outputs/train/suite_"$name"/*/exports/"$name".safetensors | head -n 1)")
done
python eval.py "${banks[@]}" name=suite
python eval.py protocol=pairs "${banks[@]:0:2}" name=suite_pairs
